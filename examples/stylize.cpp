// Stylises a picture without Python: a package of `stylekernels export STYLE --format torch`, and this
// library's ops, under libtorch.
//
//     stylize wave.pt2 libstylekernels_cpu.so photo.ppm picture.ppm
//
// Sides of the photo that are no multiples of four lose up to three rows or columns.

#include <dlfcn.h>

#include <fstream>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

namespace {

// Skips comments in the header of a PPM.
std::istream& over_comments(std::istream& file) {
  while ((file >> std::ws).peek() == '#') {
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return file;
}

torch::Tensor read_ppm(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, largest = 0;
  file >> kind;
  over_comments(file) >> width;
  over_comments(file) >> height;
  over_comments(file) >> largest;
  if (kind != "P6" || largest != 255) throw std::runtime_error("expected a PPM of 8-bit RGB");
  file.get();  // the line feed before the pixels
  auto photo = torch::empty({1, height, width, 3}, torch::kUInt8);
  file.read(reinterpret_cast<char*>(photo.data_ptr<uint8_t>()), photo.numel());
  if (!file) throw std::runtime_error("the PPM is cut short");
  return photo.slice(1, 0, height / 4 * 4).slice(2, 0, width / 4 * 4).contiguous();
}

void write_ppm(const char* path, const torch::Tensor& picture) {
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << picture.size(2) << ' ' << picture.size(1) << "\n255\n";
  file.write(reinterpret_cast<const char*>(picture.data_ptr<uint8_t>()), picture.numel());
  file.close();
  if (!file) throw std::runtime_error(std::string("cannot write ") + path);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 5) throw std::runtime_error("usage: stylize PACKAGE LIBRARY PHOTO.ppm PICTURE.ppm");
  if (dlopen(argv[2], RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
  torch::inductor::AOTIModelPackageLoader package(argv[1]);
  write_ppm(argv[4], package.run({read_ppm(argv[3])}).at(0));
  return 0;
} catch (const std::exception& error) {
  std::cerr << "stylize: " << error.what() << '\n';
  return 1;
}

// The mixing of a photo and its stylised picture, as in stylekernels/inference/blend.py.

const LUMA = [0.299, 0.587, 0.114];

/**
 * Returns the mixture as RGBA, rounded to nearest.
 *
 * photo is RGBA, stylized RGB, a byte each. A strength of 0 gives the photo, 1 the stylised
 * picture. With preserveColors only its brightness is taken, and the photo's colours stay.
 */
export function blend(photo, stylized, strength, preserveColors) {
  const mixed = new Uint8ClampedArray(photo.length); // rounds what is written to it
  const before = [0, 0, 0];
  const after = [0, 0, 0];
  for (let from = 0, to = 0; to < mixed.length; from += 3, to += 4) {
    for (let c = 0; c < 3; c += 1) {
      before[c] = photo[to + c];
      after[c] = stylized[from + c];
    }
    if (preserveColors) takeColors(after, before);
    for (let c = 0; c < 3; c += 1) mixed[to + c] = before[c] + strength * (after[c] - before[c]);
    mixed[to + 3] = 255;
  }
  return mixed;
}

/** Gives a pixel the photo's colour, with a lower saturation where it would leave the RGB cube. */
function takeColors(pixel, photo) {
  const luma = lumaOf(pixel);
  const photoLuma = lumaOf(photo);
  let saturation = 1;
  for (let c = 0; c < 3; c += 1) {
    const chroma = photo[c] - photoLuma;
    const room = chroma > 0 ? 255 - luma : luma;
    saturation = Math.min(saturation, room / Math.max(Math.abs(chroma), 1e-3));
  }
  for (let c = 0; c < 3; c += 1) pixel[c] = luma + saturation * (photo[c] - photoLuma);
}

function lumaOf(pixel) {
  return LUMA[0] * pixel[0] + LUMA[1] * pixel[1] + LUMA[2] * pixel[2];
}

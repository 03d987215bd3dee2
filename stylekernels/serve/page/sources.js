// What is painted: a photo, a video file or a camera.
//
// A source has
//   width, height    in pixels
//   moving           whether its frames follow each other
//   draw(context, width, height)
//   stop()
// and calls `changed` when there is a new frame.

/** A picture that stays the same. */
export class PhotoSource {
  moving = false;

  /** Opens a file of a picture. */
  static async open(file) {
    return new PhotoSource(await createImageBitmap(file), file);
  }

  constructor(bitmap, file) {
    [this.width, this.height, this.file] = [bitmap.width, bitmap.height, file];
    this.bitmap = bitmap;
  }

  draw(context, width, height) {
    context.imageSmoothingQuality = 'high'; // a photo is often ten times as large as a frame
    context.drawImage(this.bitmap, 0, 0, width, height);
  }

  stop() {
    this.bitmap.close();
  }
}

/** The frames of a <video> element. */
class ElementSource {
  moving = true;
  mirrored = false;
  #stopped = false;

  constructor(element, changed) {
    this.element = element;
    const next = () => {
      if (this.#stopped) return;
      changed();
      wait();
    };
    const wait = () => (element.requestVideoFrameCallback
      ? element.requestVideoFrameCallback(next) : requestAnimationFrame(next));
    wait();
  }

  get width() { return this.element.videoWidth; }
  get height() { return this.element.videoHeight; }

  draw(context, width, height) {
    context.save();
    if (this.mirrored) {
      context.translate(width, 0);
      context.scale(-1, 1);
    }
    context.drawImage(this.element, 0, 0, width, height);
    context.restore();
  }

  stop() {
    this.#stopped = true;
    this.element.pause();
    this.element.remove();
  }
}

/** A video file. */
export class VideoSource extends ElementSource {
  static async open(file, changed) {
    const element = silentVideo();
    element.loop = true;
    element.src = URL.createObjectURL(file);
    try {
      await element.play();
    } catch {
      URL.revokeObjectURL(element.src);
      element.remove();
      throw new Error(`This browser cannot play ${file.name}.`);
    }
    return new VideoSource(element, changed);
  }

  stop() {
    super.stop();
    URL.revokeObjectURL(this.element.src);
  }
}

/** A camera, mirrored if it looks at its user. */
export class CameraSource extends ElementSource {
  static async open(changed, facing = 'user') {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        video: { facingMode: facing, width: { ideal: 1280 }, height: { ideal: 720 } },
      });
    } catch (error) {
      throw new Error(CAMERA_PROBLEMS[error.name] ?? `The camera cannot be used: ${error.message}`);
    }
    const element = silentVideo();
    element.srcObject = stream;
    await element.play();
    const source = new CameraSource(element, changed);
    const { facingMode } = stream.getVideoTracks()[0].getSettings();
    source.facing = facingMode ?? facing;
    source.mirrored = source.facing !== 'environment';
    return source;
  }

  stop() {
    super.stop();
    for (const track of this.element.srcObject.getTracks()) track.stop();
  }
}

/** Whether there is more than one camera. */
export async function hasSeveralCameras() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices.filter((device) => device.kind === 'videoinput').length > 1;
}

const CAMERA_PROBLEMS = {
  NotAllowedError: 'The camera was not allowed. Allow it beside the address, and try again.',
  NotFoundError: 'There is no camera here.',
  NotReadableError: 'Another program uses the camera.',
};

function silentVideo() {
  const element = document.createElement('video');
  element.muted = true;
  element.playsInline = true;
  element.className = 'played';
  element.ariaHidden = 'true';
  document.body.append(element);
  return element;
}

// The engine that paints: here the server's, over a WebSocket.
//
// The page knows an engine by `openEngine(say)`, which may say what it is waiting for, and returns
// an object with
//   styles        [{name, title, preview}]: preview is the address of a picture
//   first         name of the style to begin with
//   mostPixels    of a frame
//   resolutions   lengths of a frame's longer side that can be chosen, in pixels
//   resolution    the one to begin with
//   where         where it paints, for people; empty if there is nothing to say
//   cameraNote    what becomes of the camera's pictures
//   cameraNeeds   what to do where the browser gives no camera
//   setStyle(name, {strength, preserveColors})
//   paint(canvas) returns {picture, timings}: an ImageBitmap, and durations in ms by their names;
//                 an Error with `canBeRepeated` says that there is no connection at the moment
//   soon()        resolves when the next frame should be captured, a little before this one is back
//   paintPhoto(file) returns a Blob: a photo in a better quality than a frame
// `stylekernels export --format web` brings another engine.js. At most two calls of paint overlap:
// one frame is with the server, and the next one is encoded, so that it is sent when the picture is
// back.

const HEADER_BYTES = 32;
const MAGIC = [...'SKF1'].map((letter) => letter.charCodeAt(0));
const PATIENCE_MS = 40_000;
const MARGIN_MS = 2;
const FRAME_QUALITY = 0.88;

/** The connection ended or could not be made. */
class ConnectionLost extends Error {
  canBeRepeated = true;
}

/** Opens the engine. */
export async function openEngine() {
  const answer = await fetch('styles.json');
  if (!answer.ok) throw new Error(await answer.text());
  return new SocketEngine(await answer.json());
}

class SocketEngine {
  resolutions = [320, 480, 640, 960, 1280];
  resolution = 640;
  where = '';
  cameraNote = 'Camera: pictures go only to the server that you opened.';
  cameraNeeds = 'start the server with --tls';
  #socket = null;
  #number = 0;
  #waiting = null;
  #answered = Promise.resolve();
  #soon = Promise.resolve();
  #roundTrip = 0;
  #look = '';
  #lookSent = '';

  constructor({ first, most_pixels: mostPixels, styles }) {
    this.first = first;
    this.mostPixels = mostPixels;
    this.styles = styles.map((style) => ({
      ...style, preview: `previews/${encodeURIComponent(style.name)}.jpg`,
    }));
  }

  setStyle(style, { strength, preserveColors }) {
    this.#look = JSON.stringify({ style, strength, preserve_colors: preserveColors });
  }

  async paint(canvas) {
    let ready;
    this.#soon = new Promise((resolve) => { ready = resolve; });
    try {
      return await this.#paint(canvas, ready);
    } finally {
      ready();
    }
  }

  soon() {
    return this.#soon;
  }

  async #paint(canvas, ready) {
    const begun = performance.now();
    const jpeg = await toJpeg(canvas);
    const encoded = performance.now();
    await this.#answered; // the credit
    const socket = await this.#connected();
    if (this.#lookSent !== this.#look) {
      socket.send(this.#look);
      this.#lookSent = this.#look;
    }
    this.#number += 1;
    const answer = this.#answer(this.#number);
    this.#answered = answer.then(() => {}, () => {});
    const sent = performance.now();
    socket.send(new Blob([header(this.#number, begun), jpeg]));
    setTimeout(ready, this.#roundTrip - 1.5 * (encoded - begun) - MARGIN_MS);
    const message = await answer;
    const received = performance.now();
    this.#roundTrip = received - sent;
    const picture = await createImageBitmap(
      new Blob([new Uint8Array(message, HEADER_BYTES)], { type: 'image/jpeg' }),
    );
    const { time, waited, decoded, painted, encoded: packed } = read(message);
    const shown = performance.now();
    return {
      picture,
      timings: {
        'Capture': encoded - begun,
        'Wait for the last picture': sent - encoded,
        'Network': received - sent - waited - decoded - painted - packed,
        'Queue': waited,
        'Decode': decoded,
        'Paint': painted,
        'Encode': packed,
        'Show': shown - received,
        total: shown - time,
      },
    };
  }

  async paintPhoto(file) {
    const answer = await fetch(`paint?${new URLSearchParams({ look: this.#look })}`, {
      method: 'POST', body: file,
    });
    if (!answer.ok) throw new Error(await answer.text());
    return answer.blob();
  }

  /** The open socket; a new one if there is none. */
  #connected() {
    if (this.#socket?.readyState === WebSocket.OPEN) return this.#socket;
    return new Promise((resolve, reject) => {
      const address = new URL('live', location.href);
      address.protocol = address.protocol.replace('http', 'ws');
      const socket = new WebSocket(address);
      socket.binaryType = 'arraybuffer';
      socket.onopen = () => {
        this.#socket = socket;
        this.#lookSent = '';
        resolve(socket);
      };
      socket.onmessage = ({ data }) => this.#take(data);
      socket.onclose = ({ code, reason }) => {
        const lost = new ConnectionLost(explain(code, reason));
        reject(lost);
        this.#settle('reject', lost);
      };
    });
  }

  /** The answer to a frame. */
  #answer(number) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#socket.close(), PATIENCE_MS);
      this.#waiting = { number, resolve, reject, timer };
    });
  }

  #take(data) {
    if (typeof data !== 'string') {
      if (read(data).number === this.#waiting?.number) this.#settle('resolve', data);
      return;
    }
    this.#settle('reject', new Error(JSON.parse(data).error));
  }

  #settle(how, value) {
    clearTimeout(this.#waiting?.timer);
    this.#waiting?.[how](value);
    this.#waiting = null;
  }
}

function toJpeg(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, 'image/jpeg', FRAME_QUALITY));
}

function header(number, time) {
  const view = new DataView(new ArrayBuffer(HEADER_BYTES));
  MAGIC.forEach((byte, index) => view.setUint8(index, byte));
  view.setUint32(4, number, true);
  view.setFloat64(8, time, true);
  return view.buffer;
}

function read(message) {
  const view = new DataView(message);
  const [waited, decoded, painted, encoded] = [16, 20, 24, 28].map((at) => view.getFloat32(at, true));
  return {
    number: view.getUint32(4, true), time: view.getFloat64(8, true), waited, decoded, painted, encoded,
  };
}

function explain(code, reason) {
  if (code === 1009) return 'The frame is too large; lower the resolution.';
  return reason ? `The server says: ${reason}.` : 'The server cannot be reached.';
}

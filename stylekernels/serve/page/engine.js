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
//   soon()        resolves when the next frame should be captured, before this one is back
//   paintPhoto(file) returns a Blob: a photo in a better quality than a frame
// `stylekernels export --format web` brings another engine.js. At most two calls of paint overlap.
//
// A frame is sent so that it arrives a little before the server has painted the one before it. The
// server then decodes it, and encodes and sends the last picture, without its painter waiting. No
// more than two frames are with the server.

const HEADER_BYTES = 32;
const MAGIC = [...'SKF1'].map((letter) => letter.charCodeAt(0));
const PATIENCE_MS = 40_000;
const MARGIN_MS = 3; // time that a frame should wait at the server, the median
const STEP_MS = 0.5; // change of the lead after each picture
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
  #waiting = new Map();
  #answered = Promise.resolve();
  #credit = Promise.resolve();
  #soon = Promise.resolve();
  #lead = 0;
  #pause = PATIENCE_MS;
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
    await this.#credit;
    const socket = await this.#connected();
    if (this.#lookSent !== this.#look) {
      socket.send(this.#look);
      this.#lookSent = this.#look;
    }
    this.#number += 1;
    const answer = this.#answer(this.#number, socket);
    const answered = answer.then(() => {}, () => {});
    // The server begins with this frame when it sends the picture of the last one.
    const before = this.#answered;
    const early = (ms) => Promise.race([answered, before.then(() => after(this.#pause - ms))]);
    this.#credit = early(0);
    early(1.5 * (encoded - begun) + MARGIN_MS).then(ready);
    this.#answered = answered;
    const sent = performance.now();
    socket.send(new Blob([header(this.#number, begun), jpeg]));
    const message = await answer;
    const received = performance.now();
    const picture = await createImageBitmap(
      new Blob([new Uint8Array(message, HEADER_BYTES)], { type: 'image/jpeg' }),
    );
    const { time, waited, decoded, painted, encoded: packed } = read(message);
    this.#lead += waited < MARGIN_MS ? STEP_MS : -STEP_MS;
    this.#lead = Math.min(Math.max(this.#lead, 0), painted);
    this.#pause = painted - this.#lead;
    const shown = performance.now();
    return {
      picture,
      timings: {
        'Capture': encoded - begun,
        'Wait for its turn': sent - encoded,
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
        this.#lose(socket, lost);
      };
    });
  }

  /** The answer to a frame. */
  #answer(number, socket) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => socket.close(), PATIENCE_MS);
      this.#waiting.set(number, { resolve, reject, timer, socket });
    });
  }

  #take(data) {
    if (typeof data !== 'string') {
      this.#settle(read(data).number, 'resolve', data);
      return;
    }
    const { error, number } = JSON.parse(data);
    this.#settle(number ?? this.#number, 'reject', new Error(error)); // no number: about a look
  }

  #settle(number, how, value) {
    const waiting = this.#waiting.get(number);
    if (!waiting) return;
    this.#waiting.delete(number);
    clearTimeout(waiting.timer);
    waiting[how](value);
  }

  /** Rejects the frames that were sent over a socket. */
  #lose(socket, error) {
    for (const [number, waiting] of [...this.#waiting]) {
      if (waiting.socket === socket) this.#settle(number, 'reject', error);
    }
  }
}

function after(ms) {
  return new Promise((resolve) => { setTimeout(resolve, ms); });
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

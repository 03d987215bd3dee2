// The engine that paints in the browser itself, with ONNX Runtime. Its interface is that of
// stylekernels/serve/page/engine.js.

const NAMES = { wasm: 'WebAssembly', webgpu: 'WebGPU' };
const RESOLUTIONS = [192, 256, 320, 480, 640, 960];
// Longer sides of frames and of saved photos: the largest that takes this time.
const FRAME = { least: 256, most: 640, ms: 400 };
const PHOTO = { least: 512, most: 1024, ms: 10_000 };
const TRIAL_PATIENCE_MS = 15_000;

/** Opens the engine, with the fastest way to compute. */
export async function openEngine(say) {
  say('Loading the network…');
  const answer = await fetch('styles.json');
  if (!answer.ok) throw new Error('The list of styles is not there.');
  const offer = await answer.json();
  const { painter, msPerPixel } = await findFastest(offer.first, say);
  painter.call('keep', { styles: offer.styles.map(({ name }) => name) });
  return new BrowserEngine(offer, painter, msPerPixel);
}

class BrowserEngine {
  resolutions = RESOLUTIONS;
  cameraNote = 'Camera: pictures stay in this browser.';
  cameraNeeds = 'open this page by an address that begins with https';
  #painter;
  #photoSide;
  #look;
  #last = Promise.resolve();

  constructor({ first, most_pixels: mostPixels, styles }, painter, msPerPixel) {
    this.first = first;
    this.mostPixels = mostPixels;
    this.styles = styles.map((style) => ({
      ...style, preview: `previews/${encodeURIComponent(style.name)}.jpg`,
    }));
    this.where = `in your browser, ${NAMES[painter.way]}`;
    const frameSide = sideFor(FRAME, msPerPixel);
    this.resolution = Math.max(...RESOLUTIONS.filter((side) => side <= frameSide));
    this.#photoSide = sideFor(PHOTO, msPerPixel);
    this.#painter = painter;
  }

  setStyle(style, { strength, preserveColors }) {
    this.#look = { style, strength, preserveColors };
  }

  paint(canvas) {
    const painting = this.#paint(canvas);
    this.#last = painting.then(() => {}, () => {});
    return painting;
  }

  soon() {
    return this.#last; // a frame is captured in no time
  }

  async paintPhoto(file) {
    const whole = await createImageBitmap(file);
    const { width, height } = whole;
    const factor = Math.min(1, this.#photoSide / Math.max(width, height));
    const [resizeWidth, resizeHeight] = [width, height].map((side) => (
      Math.max(16, Math.round(side * factor))
    ));
    const photo = await createImageBitmap(whole, {
      resizeWidth, resizeHeight, resizeQuality: 'high',
    });
    whole.close();
    const { picture } = await this.#send(photo);
    const canvas = new OffscreenCanvas(resizeWidth, resizeHeight);
    canvas.getContext('2d').drawImage(picture, 0, 0);
    picture.close();
    return canvas.convertToBlob({ type: 'image/jpeg', quality: 0.95 });
  }

  async #paint(canvas) {
    const begun = performance.now();
    const frame = await createImageBitmap(canvas);
    const captured = performance.now();
    const { picture, timings } = await this.#send(frame);
    const total = performance.now() - begun;
    const inside = Object.values(timings).reduce((sum, ms) => sum + ms, 0);
    const capture = captured - begun;
    return {
      picture,
      timings: { 'Capture': capture, ...timings, 'Hand over': total - capture - inside, total },
    };
  }

  async #send(frame) {
    try {
      return await this.#painter.call('paint', { frame, ...this.#look }, [frame]);
    } catch (error) {
      throw new Error(`This browser cannot paint this frame: ${error.message}`);
    }
  }
}

/** A way to compute, in a worker. */
class Painter {
  #worker;
  #calls = new Map();
  #count = 0;

  constructor(way) {
    this.way = way;
    this.#worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module', name: way });
    this.#worker.onmessage = ({ data: { number, result, error } }) => {
      const { resolve, reject } = this.#calls.get(number);
      this.#calls.delete(number);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    };
    this.#worker.onerror = ({ message }) => {
      for (const { reject } of this.#calls.values()) reject(new Error(message ?? 'no worker'));
      this.#calls.clear();
    };
  }

  /** Has the worker do something, after what it was asked for before. */
  call(action, values, moved = []) {
    this.#count += 1;
    const number = this.#count;
    return new Promise((resolve, reject) => {
      this.#calls.set(number, { resolve, reject });
      this.#worker.postMessage({ number, action, values }, moved);
    });
  }

  end() {
    this.#worker.terminate();
  }
}

/** Has each way to compute paint a small frame; returns the fastest one's painter and time. */
async function findFastest(style, say) {
  const trials = [];
  let problem;
  for (const way of await hasGpu() ? ['wasm', 'webgpu'] : ['wasm']) {
    const painter = new Painter(way);
    try {
      say(`Loading ${NAMES[way]}…`);
      await painter.call('open', { style });
      say(`Timing ${NAMES[way]}…`);
      trials.push({ painter, ...await withPatience(painter.call('time')) });
    } catch (error) {
      problem = error;
      painter.end();
    }
  }
  // A faulty driver may paint fast, but something else.
  const right = trials.filter(({ picture }) => isNear(picture, trials[0].picture));
  const [best] = right.sort((a, b) => a.msPerPixel - b.msPerPixel);
  if (!best) throw new Error(`This browser cannot run the network: ${problem.message}`);
  for (const { painter } of trials) {
    if (painter !== best.painter) painter.end();
  }
  return best;
}

/** Whether there is a graphics processor for WebGPU; some browsers only imitate one. */
async function hasGpu() {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    return Boolean(adapter) && !adapter.info?.isFallbackAdapter;
  } catch {
    return false;
  }
}

function withPatience(promise) {
  return Promise.race([promise, new Promise((_, reject) => {
    setTimeout(() => reject(new Error('it takes too long')), TRIAL_PATIENCE_MS);
  })]);
}

function isNear(picture, other) {
  const difference = picture.reduce((sum, value, at) => sum + Math.abs(value - other[at]), 0);
  return difference / picture.length < 0.5;
}

/** The longer side of a frame of 4:3 that takes a time. */
function sideFor({ least, most, ms }, msPerPixel) {
  return Math.min(most, Math.max(least, Math.sqrt(ms / (0.75 * msPerPixel))));
}

// Frames a second, latency, and the parts of it, as means over the last second or two.

const WINDOW_MS = 2000;
const REFRESH_MS = 400;

export class Meter {
  #frames = [];
  #shown = 0;

  constructor(element, list) {
    [this.element, this.list] = [element, list];
    this.text = element.querySelector('#speed');
  }

  /** Begin anew, for another source. */
  reset() {
    this.#frames = [];
    this.#shown = 0;
  }

  /** Count a painted frame. */
  add(timings, moving) {
    const now = performance.now();
    this.#frames.push({ now, timings });
    this.#frames = this.#frames.filter((frame) => now - frame.now < WINDOW_MS);
    if (moving && now - this.#shown < REFRESH_MS) return;
    this.#shown = now;
    const counted = moving ? this.#frames : this.#frames.slice(-1);
    const mean = (name) => (
      counted.reduce((sum, frame) => sum + frame.timings[name], 0) / counted.length
    );
    const latency = `${Math.round(mean('total'))} ms`;
    const span = now - counted[0].now;
    const rate = ((counted.length - 1) / span) * 1000;
    this.text.textContent = !moving ? `painted in ${latency}`
      : counted.length < 2 ? latency : `${rate.toFixed(rate < 10 ? 1 : 0)} fps · ${latency}`;
    this.element.className = 'meter live';
    this.list.replaceChildren(...Object.keys(timings).filter((name) => name !== 'total').flatMap(
      (name) => [entry('dt', name), entry('dd', `${mean(name).toFixed(1)} ms`)],
    ));
  }

  /** Say that nothing is painted. */
  lost(text) {
    this.text.textContent = text;
    this.element.className = 'meter lost';
  }
}

function entry(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

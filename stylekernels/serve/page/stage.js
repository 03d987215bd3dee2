// The picture on the page: the original over the painted one, up to a line that can be dragged.

export class Stage {
  constructor(element) {
    this.element = element;
    this.painted = element.querySelector('#painted');
    this.original = element.querySelector('#original');
    this.split = element.querySelector('#split');
    this.split.addEventListener('input', () => this.#divide());
    this.#divide();
  }

  /** Show a frame and its painting, of the same size. */
  show(frame, picture) {
    for (const [canvas, image] of [[this.original, frame], [this.painted, picture]]) {
      if (canvas.width !== frame.width || canvas.height !== frame.height) {
        [canvas.width, canvas.height] = [frame.width, frame.height];
      }
      canvas.getContext('2d').drawImage(image, 0, 0, frame.width, frame.height);
    }
    this.element.style.setProperty('--ratio', frame.width / frame.height);
  }

  #divide() {
    const percent = Number(this.split.value);
    this.element.style.setProperty('--split', percent);
    this.element.classList.toggle('all-painted', percent < 12);
    this.element.classList.toggle('all-original', percent > 88);
    this.split.setAttribute('aria-valuetext', `${percent} % original`);
  }
}

// The page: its settings, its sources, and the loop that paints frames with an engine.

import { openEngine } from './engine.js';
import { Meter } from './meter.js';
import { CameraSource, PhotoSource, VideoSource, hasSeveralCameras } from './sources.js';
import { Stage } from './stage.js';

const RETRY_MS = 2000;
const element = (id) => document.getElementById(id);

const stage = new Stage(element('picture'));
const meter = new Meter(element('meter'), element('timings'));
// Two, because a frame is captured while the one before is painted.
const frames = [0, 1].map(() => document.createElement('canvas'));
let engine;
let source;

// ---- what is said ------------------------------------------------------------------------------

function say(text, { problem = false } = {}) {
  const status = element('status');
  if (status.textContent !== text) status.textContent = text;
  status.classList.toggle('problem', problem);
}

// ---- the loop ----------------------------------------------------------------------------------

// The number of the newest frame or setting. Live frames in between are never painted.
let newest = 0;
let failure; // text about the last frame that could not be painted
let wake = () => {};

function changed() {
  newest += 1;
  wake();
}

async function paintForever() {
  let painted = 0;
  let last = null;
  for (let turn = 0; ; turn = 1 - turn) {
    while (painted === newest || document.hidden) {
      await new Promise((resolve) => { wake = resolve; });
    }
    painted = newest;
    const showing = paintNewest(frames[turn]);
    await last; // its canvas is the next one's
    await engine.soon();
    last = showing;
  }
}

async function paintNewest(frame) {
  const from = source;
  const size = frameSize(from);
  if (!size) return;
  [frame.width, frame.height] = size;
  from.draw(frame.getContext('2d', { alpha: false }), ...size);
  try {
    const { picture, timings } = await engine.paint(frame);
    stage.show(frame, picture);
    picture.close();
    if (from !== source) return;
    meter.add(timings, from.moving);
    if (element('status').textContent === failure) say(from.caption);
  } catch (error) {
    failure = error.message;
    say(failure, { problem: true });
    if (error.canBeRepeated) {
      meter.lost('Not connected');
      await new Promise((resolve) => { setTimeout(resolve, RETRY_MS); });
      changed();
    }
  }
}

/** Width and height of frames: of the wanted length, never enlarged, within the engine's limit. */
function frameSize({ width, height }) {
  if (!width || !height) return null;
  const factor = Math.min(
    1,
    Number(element('resolution').value) / Math.max(width, height),
    Math.sqrt(engine.mostPixels / (width * height)),
  );
  return [width, height].map((side) => Math.max(16, Math.floor(side * factor)));
}

// ---- sources -----------------------------------------------------------------------------------

/** Take what `open` returns as the source, or say why that is not possible. */
async function use(kind, caption, open) {
  let next;
  try {
    next = await open();
  } catch (error) {
    say(error.message, { problem: true });
    return;
  }
  source?.stop();
  source = next;
  source.caption = caption;
  for (const name of ['camera', 'photo', 'video']) {
    element(name).setAttribute('aria-pressed', String(name === kind));
  }
  element('transport').hidden = kind !== 'video';
  element('turn').hidden = kind !== 'camera' || !(await hasSeveralCameras());
  meter.reset();
  say(caption);
  changed();
}

const openPhoto = (file) => use('photo', file.name, async () => {
  try {
    return await PhotoSource.open(file);
  } catch {
    throw new Error(`This browser cannot show ${file.name}.`);
  }
});

const openVideo = (file) => use('video', file.name, async () => {
  const video = await VideoSource.open(file, changed);
  followVideo(video.element);
  return video;
});

const openCamera = (facing) => use(
  'camera', engine.cameraNote, async () => {
    if (!navigator.mediaDevices) {
      throw new Error(`Browsers give a camera to secure pages only: ${engine.cameraNeeds}.`);
    }
    return CameraSource.open(changed, facing);
  },
);

function openFile(file) {
  if (file?.type.startsWith('video/')) openVideo(file);
  else if (file) openPhoto(file);
}

element('camera').addEventListener('click', () => openCamera());
element('turn').addEventListener('click', () => {
  const facing = source.facing === 'user' ? 'environment' : 'user';
  source.stop();
  openCamera(facing);
});
for (const kind of ['photo', 'video']) {
  const input = element(`${kind}-file`);
  element(kind).addEventListener('click', () => input.click());
  input.addEventListener('change', () => {
    openFile(input.files[0]);
    input.value = '';
  });
}

addEventListener('dragover', (event) => {
  event.preventDefault();
  document.body.classList.add('dropping');
});
addEventListener('dragleave', () => document.body.classList.remove('dropping'));
addEventListener('drop', (event) => {
  event.preventDefault();
  document.body.classList.remove('dropping');
  if (engine) openFile(event.dataTransfer.files[0]);
});

// ---- the controls of a video -------------------------------------------------------------------

function followVideo(video) {
  const [play, seek, clock] = ['play', 'seek', 'clock'].map(element);
  const show = () => {
    play.classList.toggle('paused', video.paused);
    play.setAttribute('aria-label', video.paused ? 'Play' : 'Pause');
    seek.max = video.duration;
    seek.value = video.currentTime;
    seek.setAttribute('aria-valuetext', minutes(video.currentTime));
    clock.textContent = `${minutes(video.currentTime)} / ${minutes(video.duration)}`;
  };
  for (const name of ['play', 'pause', 'timeupdate']) video.addEventListener(name, show);
  play.onclick = () => (video.paused ? video.play() : video.pause());
  seek.oninput = () => { video.currentTime = Number(seek.value); };
  show();
}

function minutes(seconds) {
  const whole = Math.floor(seconds || 0);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`;
}

// ---- settings ----------------------------------------------------------------------------------

const chosenStyle = () => element('panel').elements.style.value;

function applySettings() {
  const strength = Number(element('strength').value);
  element('strength-value').textContent = `${strength} %`;
  engine.setStyle(chosenStyle(), {
    strength: strength / 100,
    preserveColors: element('colors').checked,
  });
  const { title } = engine.styles.find(({ name }) => name === chosenStyle());
  stage.painted.setAttribute('aria-label', `Picture painted in the style ${title}`);
  changed();
}

function offerStyles() {
  element('styles').replaceChildren(...engine.styles.map(({ name, title, preview }) => {
    const label = document.createElement('label');
    const input = Object.assign(document.createElement('input'), {
      type: 'radio', name: 'style', value: name, checked: name === engine.first,
    });
    const image = Object.assign(document.createElement('img'), { src: preview, alt: '' });
    const text = document.createElement('span');
    text.textContent = title;
    label.append(input, image, text);
    return label;
  }));
}

function offerResolutions() {
  element('resolution').replaceChildren(...engine.resolutions.map((length) => (
    new Option(`${length} px`, length, false, length === engine.resolution)
  )));
}

// ---- saving ------------------------------------------------------------------------------------

element('save').addEventListener('click', async () => {
  const button = element('save');
  const label = button.querySelector('span');
  button.disabled = true;
  label.textContent = 'Painting…';
  try {
    const file = source.file ? await engine.paintPhoto(source.file)
      : await new Promise((resolve) => { stage.painted.toBlob(resolve, 'image/jpeg', 0.95); });
    const link = document.createElement('a');
    link.href = URL.createObjectURL(file);
    link.download = `${chosenStyle()}.jpg`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    say(`Saved as ${link.download}`);
  } catch (error) {
    say(error.message, { problem: true });
  }
  label.textContent = 'Save picture';
  button.disabled = false;
});

// ---- beginning ---------------------------------------------------------------------------------

async function begin() {
  try {
    engine = await openEngine(say);
  } catch (error) {
    meter.lost('Not started');
    say(error.message, { problem: true });
    return;
  }
  element('where').textContent = engine.where;
  offerStyles();
  offerResolutions();
  applySettings();
  element('panel').inert = false;
  element('panel').addEventListener('input', applySettings);
  element('panel').addEventListener('submit', (event) => event.preventDefault());
  document.addEventListener('visibilitychange', changed);
  const sample = await (await fetch('photo.jpg')).blob();
  await use(null, 'A sample. Choose your camera, a photo or a video.', () => PhotoSource.open(sample));
  paintForever();
}

begin();

// The viewer: scan and label maps by NiiVue, or as slices on a 2D canvas where the browser has no WebGL2.
'use strict';
(async () => {
  const root = document.getElementById('viewer');
  if (!root) return;
  const page = JSON.parse(document.getElementById('viewer-data').textContent);
  const find = (name) => document.getElementById(`viewer-${name}`);
  const status = find('status');
  const colours = page.organs.map((organ) => [1, 3, 5].map((i) => parseInt(organ.colour.slice(i, i + 2), 16)));
  const ticks = [...document.querySelectorAll('.viewer-organ')];
  const radios = [...document.querySelectorAll('.viewer-mask')];
  let canvas = find('canvas');
  let details = null;
  let wanted = 0; // the newest choice of a scan; older ones that arrive later are dropped

  const mask = () => radios.find((radio) => radio.checked).value;
  const shown = () => ticks.map((tick) => tick.checked);

  async function buffer(volume) {
    if (volume.url) return (await fetched(volume.url)).arrayBuffer();
    const packed = Uint8Array.from(atob(volume.data), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Response(stream).arrayBuffer();
  }

  async function fetched(url) {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  }

  // Two ways to draw, with the same functions.
  async function withNiivue() {
    const nv = new niivue.Niivue({
      isRadiologicalConvention: true, backColor: [0, 0, 0, 1], crosshairColor: [1, 1, 1, 0.6], crosshairWidth: 0.8, crosshairWidthUnit: 'mm',
      dragAndDropEnabled: false, logLevel: 'error', multiplanarShowRender: 1, show3Dcrosshair: false, fontColor: [1, 1, 0.6, 1],
      sagittalNoseLeft: true,
    });
    await nv.attachToCanvas(canvas);
    const arrange = () => nv.setMultiplanarLayout(canvas.clientWidth > 700 ? 2 : 0); // two by two where there is room
    arrange();
    window.addEventListener('resize', arrange);
    const VIEWS = { all: 3, axial: 0, coronal: 1, sagittal: 2, '3d': 4 };
    let names = [];
    const table = () => {
      const on = shown();
      const at = (k) => [0, ...colours.map((colour) => colour[k])];
      return { R: at(0), G: at(1), B: at(2), A: [0, ...on.map((one) => (one ? 255 : 0))], I: [0, ...colours.keys()].map((_, i) => i), labels: ['', ...page.organs.map((organ) => organ.name)] };
    };
    return {
      renderer: 'webgl2',
      axis: () => ({ coronal: 1, sagittal: 0 })[find('view').value] ?? 2,
      async load(buffers, focus, first) {
        const images = [];
        for (const [name, url] of Object.entries(buffers)) {
          images.push(await niivue.NVImage.loadFromUrl({
            url, name: `${name}.nii`, colormap: 'gray', cal_min: first.low, cal_max: first.high, opacity: name === 'scan' ? 1 : 0,
          }));
        }
        return () => {
          names = Object.keys(buffers);
          nv.volumes = [];
          images.forEach((image, i) => {
            if (i) image.setColormapLabel(table());
            nv.addVolume(image);
          });
          nv.scene.crosshairPos = [1 - focus[0], 1 - focus[1], focus[2]]; // NiiVue counts towards right and front
          nv.setRenderAzimuthElevation(150, 12);
          this.masks();
        };
      },
      masks() {
        const alone = find('view').value === '3d' && mask() !== 'none'; // organs without the body around them
        nv.volumes.forEach((image, i) => {
          image.opacity = i ? Number(names[i] === mask() && find('opacity').value) : Number(!alone);
        });
        nv.updateGLVolume();
      },
      organs() {
        nv.volumes.slice(1).forEach((image) => image.setColormapLabel(table()));
        nv.updateGLVolume();
      },
      window(chosen) { [nv.volumes[0].cal_min, nv.volumes[0].cal_max] = [chosen.low, chosen.high]; nv.updateGLVolume(); },
      view(name) { nv.setSliceType(VIEWS[name]); this.masks(); },
      side(radiological) { nv.setRadiologicalConvention(radiological); },
      move(axis, part) { nv.scene.crosshairPos[axis] = axis < 2 ? 1 - part : part; nv.drawScene(); },
      place(axis) { const part = nv.scene.crosshairPos[axis]; return axis < 2 ? 1 - part : part; },
    };
  }

  function withSlices() {
    const fresh = canvas.cloneNode(); // a canvas keeps the first kind of context that it was asked for
    canvas.replaceWith(fresh);
    canvas = fresh;
    canvas.className = 'slices';
    for (const name of ['all', '3d']) find('view').querySelector(`[value="${name}"]`).remove();
    const drawing = slices.create(canvas);
    const places = [0.5, 0.5, 0.5];
    const visible = () => [null, ...colours.map((colour, i) => (shown()[i] ? colour : null))];
    const masks = () => drawing.set({ mask: mask(), opacity: Number(find('opacity').value), colours: visible() });
    const api = {
      renderer: 'canvas',
      axis: drawing.axis,
      load: async (buffers, focus) => () => {
        focus.forEach((part, axis) => { places[axis] = part; });
        drawing.show(buffers, focus);
        masks();
      },
      masks,
      organs: masks,
      window(chosen) { drawing.set({ low: chosen.low, high: chosen.high }); },
      view(name) { drawing.set({ plane: name }); },
      side(radiological) { drawing.set({ radiological }); },
      move(axis, part) { places[axis] = part; drawing.move(axis, part); },
      place: (axis) => places[axis],
    };
    return api;
  }

  async function start() {
    const test = document.createElement('canvas').getContext('webgl2');
    if (test) {
      test.getExtension('WEBGL_lose_context')?.loseContext();
      try {
        return [await withNiivue(), ''];
      } catch (error) {
        return [withSlices(), `The 3D viewer could not start (${error.message}): slices are shown. `];
      }
    }
    return [withSlices(), 'This browser has no WebGL2, so there is no 3D: slices are shown. '];
  }

  let drawer = null;
  let remark = '';

  function say(text) { status.textContent = remark + text; }

  function sides() {
    const left = find('side').checked;
    find('side-text').textContent = details && !details.has_mm
      ? 'The files of this scan do not say which side is which.'
      : left
        ? 'Slices as seen from the feet: the left of the patient is at the right (radiological convention).'
        : 'Slices as seen from the head: the left of the patient is at the left (neurological convention).';
  }

  function window_() { return details.windows[Number(find('window').value) || 0]; }

  async function choose() {
    const mine = ++wanted;
    const one = page.cases[Number(find('case').value)];
    root.dataset.state = 'loading';
    say(`Loading ${one.name} ...`);
    try {
      const told = one.details || (await (await fetched(one.url)).json());
      const names = ['scan', ...page.masks];
      const buffers = await Promise.all(names.map((name) => buffer(told.volumes[name])));
      const put = await drawer.load(Object.fromEntries(names.map((name, i) => [name, buffers[i]])), told.focus, told.windows[0]);
      if (mine !== wanted) return;
      details = told;
      const old = find('window').selectedOptions[0]?.textContent;
      find('window').replaceChildren(...details.windows.map((each, i) => {
        const label = `${each.name} (${Number(each.low.toPrecision(4))} to ${Number(each.high.toPrecision(4))}${details.unit ? ` ${details.unit}` : ''})`;
        return new Option(label, i, false, label === old);
      }));
      put();
      drawer.window(window_());
      find('slice').value = drawer.place(drawer.axis());
      sides();
      say(`${one.name}: ${details.grid}.`);
      root.dataset.state = 'ready';
    } catch (error) {
      if (mine !== wanted) return;
      say(`${one.name} cannot be shown: ${error.message}`);
      root.dataset.state = 'failed';
    }
  }

  [drawer, remark] = await start();
  root.dataset.renderer = drawer.renderer;
  canvas.addEventListener('keydown', (event) => {
    const step = { ArrowUp: 1, ArrowRight: 1, PageUp: 5, ArrowDown: -1, ArrowLeft: -1, PageDown: -5 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopImmediatePropagation(); // NiiVue has keys of its own
    find('slice').value = drawer.place(drawer.axis()) + step / 100;
    find('slice').dispatchEvent(new Event('input'));
  }, true);
  const refresh = (name, action) => find(name).addEventListener('input', action);
  find('case').addEventListener('change', choose);
  find('view').addEventListener('change', () => { drawer.view(find('view').value); find('slice').value = drawer.place(drawer.axis()); });
  find('window').addEventListener('change', () => details && drawer.window(window_()));
  find('side').addEventListener('change', () => { drawer.side(find('side').checked); sides(); });
  refresh('opacity', () => drawer.masks());
  refresh('slice', () => drawer.move(drawer.axis(), Number(find('slice').value)));
  radios.forEach((radio) => radio.addEventListener('change', () => drawer.masks()));
  ticks.forEach((tick) => tick.addEventListener('change', () => drawer.organs()));
  for (const [name, on] of [['all', true], ['none', false]]) {
    find(name).addEventListener('click', () => { ticks.forEach((tick) => { tick.checked = on; }); drawer.organs(); });
  }
  await choose();
})();

// Draws slices on a 2D canvas, for browsers without WebGL2. Volumes are as the page's own files have them: x towards
// the left of the patient, y towards the back, z towards the head.
'use strict';
const slices = (() => {
  const TYPES = { 2: Uint8Array, 4: Int16Array, 16: Float32Array, 512: Uint16Array };
  const PLANES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] }; // columns, rows, through

  function parse(buffer) {
    const view = new DataView(buffer);
    const short = (at) => view.getInt16(at, true);
    const float = (at) => view.getFloat32(at, true);
    const type = TYPES[short(70)];
    if (!type) throw new Error(`the volume has the data type ${short(70)}, which the viewer does not know`);
    const size = [short(42), short(44), short(46)];
    const values = new type(buffer, float(108), size[0] * size[1] * size[2]);
    return { size, spacing: [float(80), float(84), float(88)], slope: float(112) || 1, inter: float(116), values };
  }

  function create(canvas) {
    let scan = null;
    let masks = {};
    const at = [0.5, 0.5, 0.5];
    const state = { plane: 'axial', low: 0, high: 1, mask: 'none', opacity: 0.5, radiological: true, colours: [] };

    function draw() {
      if (!scan) return;
      const [across, down, through] = PLANES[state.plane];
      const [columns, rows] = [scan.size[across], scan.size[down]];
      const step = [1, scan.size[0], scan.size[0] * scan.size[1]];
      const depth = Math.min(scan.size[through] - 1, Math.floor(at[through] * scan.size[through]));
      const picture = new ImageData(columns, rows);
      const mask = masks[state.mask];
      const scale = 255 / Math.max(1e-6, state.high - state.low);
      const mirrored = state.plane !== 'sagittal' && !state.radiological;
      for (let r = 0; r < rows; r++) {
        const row = down === 2 ? rows - 1 - r : r; // the head is at the top
        for (let c = 0; c < columns; c++) {
          const column = mirrored ? columns - 1 - c : c;
          const from = column * step[across] + row * step[down] + depth * step[through];
          const grey = (scan.values[from] * scan.slope + scan.inter - state.low) * scale;
          const colour = mask && state.colours[mask.values[from]];
          const part = colour ? state.opacity : 0;
          for (let k = 0; k < 3; k++) {
            picture.data[4 * (r * columns + c) + k] = (1 - part) * Math.max(0, Math.min(255, grey)) + part * (colour ? colour[k] : 0);
          }
          picture.data[4 * (r * columns + c) + 3] = 255;
        }
      }
      const small = document.createElement('canvas');
      [small.width, small.height] = [columns, rows];
      small.getContext('2d').putImageData(picture, 0, 0);
      const unit = Math.min(scan.spacing[across], scan.spacing[down]); // pixels of the picture are squares
      const zoom = Math.max(1, Math.min(4, Math.floor(1400 / Math.max(columns * scan.spacing[across] / unit, rows * scan.spacing[down] / unit))));
      canvas.width = Math.round((columns * scan.spacing[across] / unit) * zoom);
      canvas.height = Math.round((rows * scan.spacing[down] / unit) * zoom);
      canvas.getContext('2d').drawImage(small, 0, 0, canvas.width, canvas.height);
    }

    return {
      axis: () => PLANES[state.plane][2],
      set(changes) { Object.assign(state, changes); draw(); },
      move(axis, part) { at[axis] = part; draw(); },
      show(buffers, focus) {
        scan = parse(buffers.scan);
        masks = Object.fromEntries(Object.entries(buffers).filter(([name]) => name !== 'scan').map(([name, b]) => [name, parse(b)]));
        focus.forEach((part, axis) => { at[axis] = part; });
        draw();
      },
    };
  }
  return { create };
})();

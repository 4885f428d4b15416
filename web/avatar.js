// Who it is, at a glance.

const COLOUR_COUNT = 6;

/** The first letter, on a colour that the name decides. */
export function paint(avatar, name) {
  if (avatar.dataset.name === name) return;
  avatar.dataset.name = name;
  avatar.textContent = [...name][0];
  const mix = (sum, letter) => Math.imul(sum ^ letter.codePointAt(0), 16_777_619) >>> 0;
  avatar.dataset.colour = String(([...name].reduce(mix, 2_166_136_261) >>> 8) % COLOUR_COUNT);
}

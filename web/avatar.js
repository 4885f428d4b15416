/** The first letter, on a colour that the name decides. */
export function paint(avatar, name) {
  if (avatar.dataset.name === name) return;
  avatar.dataset.name = name;
  avatar.textContent = [...name][0];
  const sum = [...name].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 997, 7);
  avatar.dataset.colour = String(sum % 6);
}

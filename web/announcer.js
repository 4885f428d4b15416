// Says what happens to those who do not see the page: one region, one sentence at a time.

export function announce(sentence) {
  document.getElementById('announcer').textContent = sentence;
}

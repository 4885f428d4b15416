// Which device this tab is, and what it keeps over a reload.

const DEVICE_TRIES = 4;
const DEVICE_PAUSE_MS = 150;

export function randomHex(size) {
  const bytes = crypto.getRandomValues(new Uint8Array(size));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * A device for each user of this tab, the same after a reload. A duplicated tab gets a copy of the
 * storage, but not of the lock: two of one device would push each other out.
 */
export async function deviceOf(user) {
  const key = `aldis-device-${user}`;
  const known = sessionStorage.getItem(key);
  // A page that reloads may hold the lock for a moment longer.
  for (let attempt = 0; known && attempt < DEVICE_TRIES; attempt += 1) {
    if (await take(known)) return known;
    await new Promise((resolve) => setTimeout(resolve, DEVICE_PAUSE_MS));
  }
  const device = `web-${randomHex(6)}`;
  sessionStorage.setItem(key, device);
  sessionStorage.removeItem(stateKey(user));
  await take(device);
  return device;
}

/** Holds the lock of this name for as long as the page lives. False: another page holds it. */
function take(device) {
  if (!navigator.locks) return Promise.resolve(true);
  return new Promise((resolve) => {
    navigator.locks.request(`aldis-${device}`, { ifAvailable: true }, (lock) => {
      resolve(lock !== null);
      return lock && new Promise(() => {});
    });
  });
}

/** Outbox and watermarks of this tab's device. */
export function storageOf(user) {
  return {
    load() {
      try {
        return JSON.parse(sessionStorage.getItem(stateKey(user))) ?? undefined;
      } catch {
        return undefined;
      }
    },
    save(snapshot) {
      try {
        sessionStorage.setItem(stateKey(user), JSON.stringify(snapshot));
      } catch {
        // Full: a reload will begin with what was kept before.
      }
    },
  };
}

function stateKey(user) {
  return `aldis-state-${user}`;
}

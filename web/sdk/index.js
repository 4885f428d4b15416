// A client of Aldis: one device of one user. The README shows how it is used.
export { AldisError, Client } from './client.js';
export { Core, PRESENCE_MAX } from './core.js';
export { groupChange, readFrame } from './frames.js';
export { directName, peerIn, usersOf } from './names.js';

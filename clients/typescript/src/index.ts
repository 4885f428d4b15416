// A client of Aldis: one device of one user. The README shows how it is used.

export { AldisError, Client } from './client.js';
export type { ClientOptions, Events, Socket, Storage } from './client.js';
export { Core, PRESENCE_MAX } from './core.js';
export { groupChange, readFrame } from './frames.js';
export type {
  Channel, Convo, Device, Failed, Frame, Goaway, Group, GroupChange, Kind, Message, Page, Presence,
  Receipt, Sent, ServerError, Welcome,
} from './frames.js';
export type {
  Effect, Happening, Options, Problem, Reason, Snapshot, State,
} from './happenings.js';
export { directName, peerIn, usersOf } from './names.js';
export type { Outgoing } from './outbox.js';

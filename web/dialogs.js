// What is asked for in a dialog: with whom to begin a conversation, and who is in a group.

import { paint } from './avatar.js';
import { directName } from './sdk/index.js';

/** Opens a copy of a template as a dialog, gone once it is closed. */
function open(id, title) {
  const dialog = document.getElementById(id).content.firstElementChild.cloneNode(true);
  dialog.setAttribute('aria-label', title);
  dialog.querySelector('h2').textContent = title;
  dialog.querySelector('.close').addEventListener('click', () => dialog.close());
  // Beside it is where one clicks to get rid of it.
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Does what may be refused, and says why it was. */
async function attempt(dialog, action) {
  const line = dialog.querySelector('.reason');
  line.hidden = true;
  try {
    await action();
    return true;
  } catch (error) {
    line.textContent = error.code === 'disconnected' ? 'There is no connection.' : error.message;
    line.hidden = false;
    return false;
  }
}

function names(text) {
  return [...new Set(text.split(/[,\n]/).map((name) => name.trim()).filter((name) => name !== ''))];
}

export function askForNew(pane) {
  const { session } = pane;
  const dialog = open('begin-dialog', `${pane.user}: new conversation`);
  const [people, name] = ['people', 'name'].map((field) => dialog.querySelector(`[name=${field}]`));
  dialog.querySelector('form').addEventListener('submit', async (event) => {
    event.preventDefault();
    const users = names(people.value);
    const group = name.value.trim();
    const isDone = await attempt(dialog, async () => {
      if (group === '') {
        if (users.length !== 1) throw new Error('Several people are a group: it needs a name.');
        pane.openConversation(session.conversation(directName(pane.user, users[0])));
        return;
      }
      session.setGroup(await session.client.createGroup(group, users));
      pane.openConversation(session.conversation(group));
    });
    if (!isDone) return;
    dialog.close();
    pane.field.focus({ preventScroll: true });
  });
}

export function askForMembers(pane, conversation) {
  const { session } = pane;
  const { client } = session;
  const dialog = open('members-dialog', conversation.name);
  const change = (action) => attempt(dialog, async () => {
    session.setGroup(await action());
    show();
  });
  const show = () => {
    const { group } = conversation;
    const rows = (group?.members ?? []).map((member) => rowOf(pane, conversation, member, change));
    dialog.querySelector('.members').replaceChildren(...rows);
    dialog.querySelector('form').hidden = !conversation.mayChange();
    dialog.querySelector('.leave').hidden = conversation.hasLeft;
  };
  show();
  dialog.querySelector('form').addEventListener('submit', async (event) => {
    event.preventDefault();
    const field = dialog.querySelector('[name=people]');
    const users = names(field.value);
    if (users.length === 0) return;
    if (await change(() => client.addMembers(conversation.name, users))) field.value = '';
  });
  dialog.querySelector('.leave').addEventListener('click', async () => {
    if (await change(() => client.leaveGroup(conversation.name))) dialog.close();
  });
  // Others change it too.
  const timer = setInterval(() => {
    const { group } = conversation;
    if (group && group.version !== dialog.version) {
      dialog.version = group.version;
      show();
    }
  }, 500);
  dialog.addEventListener('close', () => clearInterval(timer));
}

function rowOf(pane, conversation, member, change) {
  const { client } = pane.session;
  const { owner, admins } = conversation.group;
  const row = document.getElementById('member').content.firstElementChild.cloneNode(true);
  const find = (selector) => row.querySelector(selector);
  const isAdmin = admins.includes(member);
  paint(find('.avatar'), member);
  pane.showPresence(find('.avatar'), { peer: member === pane.user ? undefined : member });
  find('.title').textContent = member === pane.user ? `${member} (you)` : member;
  find('.role').textContent = member === owner ? 'owner' : (isAdmin && 'admin') || '';
  const [promote, remove] = [find('.promote'), find('.remove')];
  promote.hidden = owner !== pane.user || member === owner;
  promote.textContent = isAdmin ? 'No admin' : 'Make admin';
  promote.setAttribute('aria-label', `${promote.textContent}: ${member}`);
  remove.hidden = !conversation.mayChange() || member === owner || member === pane.user;
  remove.setAttribute('aria-label', `Remove ${member}`);
  const { name } = conversation;
  promote.addEventListener('click', () => change(() => (
    client.setRole(name, [member], isAdmin ? 'member' : 'admin')
  )));
  remove.addEventListener('click', () => change(() => client.removeMembers(name, [member])));
  return row;
}

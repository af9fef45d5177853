// Conversations and settings in the browser's own storage; nothing of them is kept on the server.

const PREFIX = "plugserve.chat.";
const SETTINGS = "plugserve.settings";

/** {id, title, updated, messages: [{role, content, ...}]}; the newest first. */
export function loadConversations() {
  const found = [];
  try {
    for (const name of Object.keys(localStorage).filter((one) => one.startsWith(PREFIX))) {
      const one = JSON.parse(localStorage.getItem(name));
      if (one?.id && Array.isArray(one.messages)) found.push(one);
    }
  } catch {
    // without storage, or with one that something else wrote to, there are fewer
  }
  return found.sort((a, b) => b.updated - a.updated);
}

export const isConversation = (name) => name === null || name.startsWith(PREFIX);

export function newConversation() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return { id: `${Date.now().toString(36)}${random[0].toString(36)}`, title: "", updated: Date.now(), messages: [] };
}

/** True if it was kept; token probabilities are dropped first where the storage is full. */
export function saveConversation(conversation) {
  if (!conversation.messages.length && !conversation.title) return true;
  const name = PREFIX + conversation.id;
  try {
    localStorage.setItem(name, JSON.stringify(conversation));
    return true;
  } catch {
    const light = { ...conversation, messages: conversation.messages.map(({ tokens, ...rest }) => rest) };
    try {
      localStorage.setItem(name, JSON.stringify(light));
      return true;
    } catch {
      return false;
    }
  }
}

export function deleteConversation(id) {
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // it was never kept
  }
}

export const titleOf = (conversation) =>
  conversation.title || conversation.messages.find((one) => one.role === "user")?.content.trim().slice(0, 60) || "New conversation";

export function loadSettings() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
  } catch {
    return {};
  }
}

export function saveSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // they last as long as the page
  }
}

// Runs in every frame before the page's own scripts: its clock stands still until `clock.advance`, so that
// animations, delays and dates are the same each time, and no answer waits for them; and it keeps the focus that
// it has while other episodes act in their frames.
(() => {
  if (window === window.top) return;
  const RealDate = Date;
  const START = new RealDate(2020, 0, 15, 12, 0, 0).getTime();
  let now = START, next = 1, timers = new Map();
  const set = (f, ms, every, args) => {
    const at = now + Math.max(1, Number(ms) || 0);
    timers.set(next, { at, every, order: next,
      f: typeof f === 'function' ? () => f(...args) : () => (0, eval)(String(f)) });
    return next++;
  };
  window.setTimeout = (f, ms, ...args) => set(f, ms, 0, args);
  window.setInterval = (f, ms, ...args) => set(f, ms, Math.max(1, Number(ms) || 0), args);
  window.requestAnimationFrame = f => set(() => f(now - START), 16, 0, []);
  window.clearTimeout = window.clearInterval = window.cancelAnimationFrame = id => {
    timers.delete(id);
  };
  window.Date = class extends RealDate {
    constructor(...given) {
      if (given.length) super(...given); else super(now);
    }
    static now() { return now; }
  };
  performance.now = () => now - START;

  const CLICKS = ['click', 'mousedown', 'mouseup', 'dblclick'];
  const clickable = new WeakSet(), add = EventTarget.prototype.addEventListener;
  EventTarget.prototype.addEventListener = function (kind, ...rest) {
    if (CLICKS.includes(kind)) clickable.add(this);
    return add.call(this, kind, ...rest);
  };
  const errors = [];
  add.call(window, 'error', event => {
    errors.push(String(event.message || (event.target && event.target.src) || 'an error'));
  }, true);

  // A browser has one focus, which the next episode takes away: a page hears of it in its own turns alone.
  let turn = false, focused = null;
  for (const kind of ['focus', 'blur', 'focusin', 'focusout']) {
    add.call(window, kind, event => { if (!turn) event.stopImmediatePropagation(); }, true);
  }
  document.hasFocus = () => true;

  window.clock = {
    errors, clickable,
    // Does something in the page's turn, with the focus where the page last had it.
    inTurn(act) {
      if (focused && focused.isConnected && focused !== document.activeElement) {
        focused.focus({ preventScroll: true });
      }
      turn = true;
      try { return act(); } finally {
        turn = false;
        focused = document.activeElement === document.body ? null : document.activeElement;
      }
    },
    restart() {
      timers.clear();
      now = START; next = 1; focused = null;
      if (document.activeElement) document.activeElement.blur();
    },
    // Runs what is due in the next milliseconds, in order.
    advance(ms) {
      const end = now + ms;
      for (;;) {
        let id = 0, due = null;
        for (const [key, timer] of timers) {
          if (timer.at <= end && (!due || timer.at < due.at ||
              (timer.at === due.at && timer.order < due.order))) { id = key; due = timer; }
        }
        if (!due) break;
        now = Math.max(now, due.at);
        if (due.every) due.at = now + due.every; else timers.delete(id);
        try { due.f(); } catch (e) { errors.push(String(e)); }
      }
      now = end;
    },
  };
})();

// In the top frame: an inner frame for each episode, and one call each to reset it, to act in it, to read it.
window.pages = (() => {
  const frames = new Map();
  const HIDDEN = new Set(['reward-display', 'sync-task-cover', 'click-canvas', 'query']);
  const SKIPPED = new Set(['SCRIPT', 'STYLE', 'NOSCRIPT', 'TEMPLATE', 'HEAD', 'META', 'LINK', 'TITLE']);
  const KEPT = ['id', 'class', 'role', 'type', 'for', 'name', 'title', 'alt', 'placeholder', 'tabindex',
    'contenteditable', 'aria-label', 'aria-labelledby', 'aria-checked'];
  const SHAPES = { circle: 'circle', rect: 'rectangle', polygon: 'polygon', ellipse: 'ellipse', path: 'shape', line: 'line' };
  const SETTLE_MS = 1500;  // of the page's clock, after each action

  const escape = text => text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, '')
    .replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/"/g, '&quot;');

  // Begins to load a page.
  function open(key, url, width, height) {
    drop(key);
    const element = document.createElement('iframe');
    element.width = width; element.height = height; element.style.border = '0';
    const ready = new Promise((done, failed) => {
      element.onload = () => {
        let found = false;
        try { found = element.contentWindow.clock && element.contentWindow.core; } catch { /* an error page */ }
        if (found) done(); else failed(`${url} is no page of the package`);
      };
    });
    ready.catch(() => {});  // who waits for it is told
    frames.set(key, { element, ready, nodes: [] });
    element.src = url;
    document.body.appendChild(element);
  }

  // Promises what refused the page, nothing if all is well.
  const ready = key => frames.get(key).ready.then(() => '', e => String(e));

  function drop(key) {
    const frame = frames.get(key);
    if (!frame) return;
    frames.delete(key);
    frame.element.remove();
  }

  function reset(key, seed) {
    const frame = frames.get(key), page = frame.element.contentWindow;
    page.clock.restart();
    page.clock.errors.length = 0;
    frame.clipboard = '';
    page.eval('core.EP_TIMER = null; core.EPISODE_MAX_TIME = 1e9;');
    page.Math.seedrandom(seed);
    page.core.setDataMode('train');
    page.clock.inTurn(() => {
      page.core.startEpisode();
      page.core.startEpisodeReal();
      page.clock.advance(SETTLE_MS);
    });
    return read(frame);
  }

  function act(key, node, op, value) {
    const frame = frames.get(key), page = frame.element.contentWindow;
    const element = frame.nodes[node];
    const refused = page.clock.inTurn(() => {
      const why = DO[op](page, element, value, frame);
      page.clock.advance(SETTLE_MS);
      return why;
    });
    return { ...read(frame), refused };
  }

  // -- what is done --------------------------------------------------------------------------------

  function mouse(page, element, kind) {
    const box = element.getBoundingClientRect();
    return element.dispatchEvent(new page.MouseEvent(kind, {
      bubbles: !/enter|leave/.test(kind), cancelable: true, view: page, button: 0, detail: 1,
      clientX: box.left + box.width / 2, clientY: box.top + box.height / 2,
    }));
  }

  function click(page, element) {
    for (const kind of ['mouseover', 'mouseenter', 'mousemove']) mouse(page, element, kind);
    if (mouse(page, element, 'mousedown')) focus(page, element);
    mouse(page, element, 'mouseup');
    mouse(page, element, 'click');
  }

  function focus(page, element) {
    const before = page.document.activeElement;
    const takes = element.closest('input, textarea, select, button, a[href], [tabindex], [contenteditable]');
    if (takes === before) return;
    if (before && before !== page.document.body) before.blur();
    if (takes && takes.focus) takes.focus({ preventScroll: true });
  }

  function key(page, element, kind, name) {
    const code = CODES[name] || SIGNS[name] ||
      (/^[a-z0-9]$/i.test(name) ? name.toUpperCase().charCodeAt(0) : 0);
    const number = kind === 'keypress' && name.length === 1 ? name.charCodeAt(0) : code;
    return element.dispatchEvent(new page.KeyboardEvent(kind, {
      bubbles: true, cancelable: true, key: name, keyCode: number, which: number,
      charCode: kind === 'keypress' ? number : 0,
    }));
  }

  const CODES = { Enter: 13, Backspace: 8, Tab: 9, Escape: 27, Delete: 46, ' ': 32,
    ArrowLeft: 37, ArrowUp: 38, ArrowRight: 39, ArrowDown: 40, Home: 36, End: 35, PageUp: 33, PageDown: 34 };
  // Signs are on keys with codes of their own, as an American keyboard has them: 40 is an arrow, not "(".
  const SIGNS = Object.fromEntries([
    ...[')', '!', '@', '#', '$', '%', '^', '&', '*', '('].map((sign, digit) => [sign, 48 + digit]),
    ...Object.entries({ 186: ';:', 187: '=+', 188: ',<', 189: '-_', 190: '.>', 191: '/?', 192: '`~', 219: '[{',
      220: '\\|', 221: ']}', 222: '\'"' }).flatMap(([code, signs]) => [...signs].map(s => [s, Number(code)])),
  ]);
  const SCROLLS = {
    Home: () => 0, End: e => e.scrollHeight,
    PageUp: e => e.scrollTop - e.clientHeight, PageDown: e => e.scrollTop + e.clientHeight,
  };
  const NO_TEXT = new Set(['checkbox', 'radio', 'button', 'submit', 'reset', 'range', 'color', 'file',
    'image', 'hidden']);

  const isField = element => element.isContentEditable || element.tagName === 'TEXTAREA' ||
    element.tagName === 'INPUT' && !NO_TEXT.has(element.type);

  function write(page, element, text) {
    if (element.isContentEditable) element.textContent = text;
    else {
      const kind = element.tagName === 'TEXTAREA' ? page.HTMLTextAreaElement : page.HTMLInputElement;
      Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(element, text);
    }
    element.dispatchEvent(new page.Event('input', { bubbles: true }));
  }

  const held = element => element.isContentEditable ? element.textContent : element.value;

  function whole(element, text) {  // what a date or time field makes of the keys in a browser's own order
    const date = /^(\d\d?)\/(\d\d?)\/(\d{4})$/.exec(text), time = /^(\d\d?):(\d\d)\s*([AP])M$/i.exec(text);
    if (element.type === 'date' && date) {
      return `${date[3]}-${date[1].padStart(2, '0')}-${date[2].padStart(2, '0')}`;
    }
    if (element.type === 'time' && time) {
      const hour = Number(time[1]) % 12 + (/p/i.test(time[3]) ? 12 : 0);
      return `${String(hour).padStart(2, '0')}:${time[2]}`;
    }
    return text;
  }

  function type(page, element, text) {
    if (!isField(element)) return 'no text can be typed there';
    if (element.disabled || element.readOnly) return 'the field cannot be changed';
    focus(page, element);
    if (element.disabled) return 'the field was disabled when it was reached';
    if (['date', 'time', 'month', 'week', 'datetime-local'].includes(element.type)) {
      write(page, element, whole(element, text));
    } else {
      if (held(element)) {
        if (key(page, element, 'keydown', 'Backspace')) write(page, element, '');
        key(page, element, 'keyup', 'Backspace');
      }
      const before = held(element);
      let typed = before;
      for (const letter of text) {
        const kept = key(page, element, 'keydown', letter) && key(page, element, 'keypress', letter);
        typed += letter;
        if (kept && held(element) !== typed) write(page, element, typed);
        key(page, element, 'keyup', letter);
      }
      if (before && held(element) === before) return 'the field takes no keys';
    }
    element.dispatchEvent(new page.Event('change', { bubbles: true }));
    return '';
  }

  function select(page, element, text) {
    const list = element.closest('select');
    if (!list) return 'nothing can be selected there';
    const plain = s => s.toLowerCase().split(/\s+/).filter(Boolean).join(' ');
    const option = Array.from(list.options).find(o => plain(o.textContent) === plain(text));
    if (!option) return 'the list has no such option';
    focus(page, list);
    option.selected = !(list.multiple && option.selected);
    for (const kind of ['input', 'change']) list.dispatchEvent(new page.Event(kind, { bubbles: true }));
    return '';
  }

  // What copies and pastes a whole field: the clipboard of an episode is its frame's.
  function clip(page, element, name, frame) {
    if (!isField(element)) return 'there is no field to copy or paste';
    focus(page, element);
    if (name === 'control+c') frame.clipboard = held(element);
    else if (element.disabled || element.readOnly) return 'the field cannot be changed';
    else write(page, element, frame.clipboard || '');
    return '';
  }

  function press(page, element, name, frame) {
    if (/^control\+[cv]$/i.test(name)) return clip(page, element, name.toLowerCase(), frame);
    const asked = name.toLowerCase() === 'space' ? ' ' : name;
    const known = Object.keys(CODES).find(k => k.toLowerCase() === asked.toLowerCase());
    if (!known && asked.length !== 1) return 'there is no such key';
    if (element.disabled) return 'it is disabled';
    focus(page, element);
    const pressed = known || asked;
    let kept = key(page, element, 'keydown', pressed);
    if (pressed.length === 1 || pressed === 'Enter') kept = key(page, element, 'keypress', pressed) && kept;
    if (kept && SCROLLS[pressed] && element.scrollHeight > element.clientHeight) {
      element.scrollTop = SCROLLS[pressed](element);
      element.dispatchEvent(new page.Event('scroll'));
    } else if (kept && isField(element)) {
      if (pressed.length === 1) write(page, element, held(element) + pressed);
      else if (pressed === 'Backspace') write(page, element, held(element).slice(0, -1));
      else if (pressed === 'Enter' && element.tagName === 'TEXTAREA') write(page, element, held(element) + '\n');
      else if (pressed === 'Enter' && element.form) submit(element.form);
    }
    const presses = { Enter: PRESSED_BY_ENTER, ' ': PRESSED_BY_SPACE }[pressed];
    if (kept && presses && element.matches(presses)) element.click();
    key(page, element, 'keyup', pressed);
    return '';
  }

  const BUTTONS = 'button, input[type=button], input[type=submit], input[type=reset], summary';
  const PRESSED_BY_ENTER = `${BUTTONS}, a[href]`;
  const PRESSED_BY_SPACE = `${BUTTONS}, input[type=checkbox], input[type=radio]`;

  function submit(form) {  // as Enter in a field does: by the form's first button, or by itself
    const button = form.querySelector('button:not([type=button]):not([type=reset]), input[type=submit]');
    if (!button) form.requestSubmit();
    else if (!button.disabled) button.click();
  }

  const DO = {
    CLICK(page, element) {
      if (element.disabled) return 'it is disabled';
      click(page, element);
      return '';
    },
    TYPE: type, SELECT: select, KEY: press,
  };

  // -- what is read --------------------------------------------------------------------------------

  function read(frame) {
    const page = frame.element.contentWindow;
    if (!page || !page.core || !page.clock) return { lost: true };
    const done = page.eval('WOB_DONE_GLOBAL'), query = page.core.getUtterance();
    frame.nodes = [];
    const parts = [];
    if (!done) write_out(frame, page, page.document.body, parts);
    return {
      done, html: parts.join(''), errors: page.clock.errors.splice(0),
      reward: page.eval('WOB_RAW_REWARD_GLOBAL'), task: query.utterance || query,
    };
  }

  function write_out(frame, page, element, parts) {
    if (SKIPPED.has(element.tagName) || HIDDEN.has(element.id)) return;
    const style = page.getComputedStyle(element);
    let tag = element.tagName.toLowerCase();
    const option = tag === 'option' || tag === 'optgroup';
    if (!option && (style.display === 'none' || style.visibility === 'hidden')) return;
    const picture = style.content.startsWith('url(');
    if (!option && !picture && !seen(element) && !element.children.length) return;
    const told = attributes(page, element, tag);
    if (picture) told['aria-label'] = `${element.id} ${element.getAttribute('class') || ''}`.trim();
    told.backend_node_id = String(frame.nodes.push(element) - 1);
    if (tag === 'text') tag = 'glyph';  // of a drawing; <text> is a piece of text in annotated pages
    parts.push('<', tag, ...Object.entries(told).map(([k, v]) => ` ${k}="${escape(v)}"`), '>');
    for (const child of element.childNodes) {
      if (child.nodeType === 3) parts.push(escape(child.data));
      else if (child.nodeType === 1) write_out(frame, page, child, parts);
    }
    parts.push('</', tag, '>');
  }

  function seen(element) {  // a picture may still be loading, then it has no size
    if (element.tagName === 'IMG') return true;
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.height > 0;
  }

  function attributes(page, element, tag) {
    const told = {};
    for (const name of KEPT) if (element.hasAttribute(name)) told[name] = element.getAttribute(name);
    const wraps = element === page.document.body || ['wrap', 'area'].includes(element.id);
    if (!wraps && (page.clock.clickable.has(element) || element.onclick)) told.is_clickable = 'true';
    if (tag === 'input' && ['checkbox', 'radio'].includes(element.type)) {
      if (element.checked) told.checked = 'true';
    } else if (['input', 'textarea'].includes(tag)) told.input_value = element.value;
    else if (tag === 'select' && element.multiple) told.multiple = 'true';
    else if (tag === 'option' && element.selected) told.option_selected = 'true';
    const look = looks(element, tag);
    if (look && !told['aria-label'] && !told.title) {
      told['aria-label'] = look;
      told.role = told.role || 'img';
    }
    return told;
  }

  // What a shape, a letter of a drawing or a block without text looks like.
  function looks(element, tag) {
    const box = element.getBoundingClientRect();
    if (SHAPES[tag] || tag === 'text') {
      const fill = element.getAttribute('fill') || element.style.fill || '';
      const corners = (element.getAttribute('points') || '').trim().split(/[\s]+/).length;
      const kind = tag === 'text' ? element.textContent : tag === 'polygon' && corners === 3 ? 'triangle' : SHAPES[tag];
      return [fill, kind, tag === 'text' ? element.getAttribute('font-size') : `${Math.round(box.width)}x${Math.round(box.height)}`]
        .filter(Boolean).join(' ');
    }
    const color = element.style.backgroundColor;
    return color && !element.textContent.trim() ? color : '';
  }

  const frame = key => frames.get(key).element.contentWindow;  // for tests

  return { open, ready, drop, reset, act, frame, count: () => frames.size };
})();

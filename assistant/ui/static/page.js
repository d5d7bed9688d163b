// Wakes the page when an answer starts or ends elsewhere, keeps the conversation in the address, and makes clicks on
// choices and Escape work. It reads two marks that the server renders: which conversation is shown, which answer is followed.
(() => {
  "use strict";
  let shown = null;
  let source = null;
  let followed = new Set();

  const mark = (name) => {
    const element = document.querySelector(`#here .${name}`);
    return element ? element.title : "";
  };
  const click = (id) => {
    const element = document.getElementById(id);
    const button = element && (element.matches("button") ? element : element.querySelector("button"));
    if (button) button.click();
    return Boolean(button);
  };
  const write = (selector, text) => {
    const box = document.querySelector(`${selector} textarea, ${selector} input`);
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const wake = (turn) => {
    // The page that asked follows the answer already; give its own update the time to arrive first.
    setTimeout(() => {
      if (followed.has(turn)) return;
      click("wake");
    }, 700);
  };

  // On a narrow screen the list of conversations lies over the chat: it is opened to choose, and closed again.
  const narrow = matchMedia("(max-width: 768px)");
  let folded = false;
  const fold = () => document.querySelector("#sidebar.open .toggle-button")?.click();

  const listen = (conversation) => {
    if (source) source.close();
    source = null;
    // A browser opens six connections to a server for all its windows: those that nobody sees hold none.
    if (!conversation || document.hidden) return;
    source = new EventSource(`events?conversation=${encodeURIComponent(conversation)}`);
    for (const what of ["started", "finished"]) {
      source.addEventListener(what, (event) => wake(JSON.parse(event.data).turn));
    }
    source.addEventListener("open", () => {
      // The server may be another one by now: show what it knows.
      if (document.body.classList.contains("offline")) click("wake");
      document.body.classList.remove("offline");
    });
    source.addEventListener("error", () => document.body.classList.add("offline"));
  };

  const look = () => {
    if (!document.querySelector("#here .here")) return;
    if (!folded && document.querySelector("#sidebar.open")) {
      folded = true;
      if (narrow.matches) fold();
    }
    const following = mark("following");
    if (following) followed.add(following);
    const conversation = mark("here");
    if (conversation === shown) return;
    shown = conversation;
    const address = new URL(location.href);
    if (conversation) address.searchParams.set("c", conversation);
    else address.searchParams.delete("c");
    history.replaceState(history.state, "", address);
    listen(conversation);
  };

  const label = () => {
    // Gradio puts a message's source into its label: read out, that is markup. Say who speaks and what is seen.
    for (const message of document.querySelectorAll("#chat [data-testid=bot], #chat [data-testid=user]")) {
      const who = message.dataset.testid === "bot" ? "Assistant" : "You";
      if (!message.getAttribute("aria-label")?.startsWith(`${who}:`)) {
        message.setAttribute("aria-label", `${who}: ${message.innerText.trim().slice(0, 200)}`);
      }
    }
  };

  document.addEventListener("visibilitychange", () => {
    if (shown === null) return;
    listen(shown);
    if (!document.hidden) click("wake");
  });

  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      look();
      label();
    }, 50);
  }).observe(document.documentElement, { subtree: true, childList: true, attributes: true, attributeFilter: ["title"] });

  document.addEventListener("click", (event) => {
    if (narrow.matches && event.target.closest("#new, #conversations label")) fold();
    const choice = event.target.closest("#chat button.choice");
    if (!choice) return;
    write("#message", choice.title ? `/${choice.title} ${choice.value}` : choice.value);
    setTimeout(() => click("send"), 150);
  });

  document.addEventListener("click", (event) => {
    const action = event.target.closest("#chat button.action");
    if (!action || (action.value && !confirm(action.value))) return;
    const answer = action.closest(".answer");
    const message = [...answer.classList].find((name) => name.startsWith("id-")).slice(3);
    write("#action", `${message} ${[...answer.querySelectorAll("button.action")].indexOf(action)}`);
    setTimeout(() => click("act"), 150);
  });

  addEventListener("beforeunload", () => {
    // Leaving breaks off Gradio's open streams, which it reports as errors of a page that is no longer there. This script
    // is not deferred so that it is asked before Gradio.
    console.error = () => {};
    if (source) source.close();
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && mark("following")) click("stop");
  });
})();

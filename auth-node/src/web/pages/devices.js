import { call, nameCluster, Refusal } from "./api.js";
import { day, onSubmit, sentence, when } from "./form.js";
import * as passkey from "./passkey.js";

const element = (id) => document.getElementById(id);
const form = element("add");
const { name } = form.elements;
const dialog = element("remove");

/** Without a session there is nothing here. */
function logInFirst(refusal) {
    if (refusal.code === "UNAUTHENTICATED") location.replace("/web/login");
    throw refusal;
}

/** Says what went wrong or well with a device, where it is looked for. */
function tell(good, bad = "") {
    element("said").textContent = good;
    form.querySelector(".notice.bad").textContent = bad && sentence(bad);
}

function item(device) {
    const entry = document.createElement("li");
    const about = document.createElement("div");
    const title = document.createElement("strong");
    title.textContent = device.name;
    const used = device.last_used_at ? `last used ${day(device.last_used_at)}` : "not used yet";
    const times = document.createElement("span");
    times.className = "quiet small";
    times.textContent = `${device.passkey ? "Passkey" : "Security key"}, added ${day(device.created_at)}, ${used}`;
    about.append(title, times);
    const button = document.createElement("button");
    button.type = "button";
    button.className = "danger";
    button.textContent = "Remove";
    button.setAttribute("aria-label", `Remove ${device.name}`);
    button.addEventListener("click", () => remove(device));
    entry.append(about, button);
    return entry;
}

async function load() {
    const { devices } = await call("GET", "/devices").catch(logInFirst);
    element("devices").replaceChildren(...devices.map(item));
    element("devices").hidden = devices.length === 0;
    element("none").hidden = devices.length > 0;
}

/** Whether the person in front of the page says yes. */
function confirmed(device) {
    element("remove-name").textContent = device.name;
    dialog.returnValue = "keep";
    dialog.showModal();
    return new Promise((resolve) => {
        dialog.addEventListener("close", () => resolve(dialog.returnValue === "remove"), { once: true });
    });
}

async function remove(device) {
    if (!(await confirmed(device))) return;
    try {
        await call("DELETE", `/devices/${encodeURIComponent(device.id)}`).catch(logInFirst);
        await load();
        tell(`${device.name} was removed.`);
    } catch (refusal) {
        tell("", refusal.message);
    }
    name.focus();
}

onSubmit(form, async () => {
    tell("");
    if (!passkey.supported) throw new Error("This browser knows no passkeys: take another one.");
    if (!name.value.trim()) {
        throw new Refusal({ code: "MISSING", field: "name", message: "Give the device a name." });
    }
    const { challenge_id, options } = await call("POST", "/devices/begin", { passkey: true }).catch(logInFirst);
    const credential = await passkey.create(options);
    const { device } = await call("POST", "/devices/finish", { challenge_id, credential, name: name.value.trim() });
    name.value = "";
    element("welcome").hidden = true;
    await load();
    tell(`${device.name} was added. From the next login on you can use it.`);
});

element("logout").addEventListener("click", async () => {
    try {
        await call("POST", "/logout");
    } catch (refusal) {
        if (refusal.code === "UNREACHABLE") {
            tell("", refusal.message);
            return;
        }
        // Whatever it was, the cluster has had the browser forget the session.
    }
    location.replace("/web/login");
});

async function begin() {
    const { session, roles } = await call("GET", "/session").catch(logInFirst);
    element("user").textContent = session.user;
    element("until").textContent = when(session.expires_at);
    element("roles").textContent = roles.length ? roles.join(", ") : "none";
    element("welcome").hidden = location.hash !== "#new";
    history.replaceState(null, "", location.pathname);
    element("page").hidden = false;
    await load();
}

begin().catch((refusal) => {
    element("page").hidden = false;
    tell("", refusal.message);
});
nameCluster();

// What the forms share: what is wrong is said beside its field, or else above all, and one thing is done at a time.

/** What the cluster says, as a sentence. */
export function sentence(text) {
    return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/** Takes back what was said before. */
function clear(form) {
    for (const input of form.querySelectorAll("input")) input.removeAttribute("aria-invalid");
    for (const place of form.querySelectorAll(".wrong")) place.textContent = "";
    form.querySelector(".notice").textContent = "";
}

/** Says what is wrong, and goes to the field that it is about. */
function say(form, refusal, fields) {
    const input = form.elements.namedItem(fields[refusal.field] ?? refusal.field);
    const place = input && document.getElementById(`${input.id}-wrong`);
    // The name of the field is there already.
    const text = sentence(refusal.message.replace(new RegExp(`^${refusal.field}: `), ""));
    if (!refusal.field || !place) {
        form.querySelector(".notice").textContent = text;
        return;
    }
    place.textContent = text;
    input.setAttribute("aria-invalid", "true");
    input.focus();
}

/**
 * Does `work`, which a button of `form` or beside it begins, unless the form is busy. What goes wrong is said in the form. The
 * button is not `disabled` meanwhile: it would lose the focus.
 */
async function alone(form, button, work, fields = {}) {
    if (form.hasAttribute("aria-busy")) return;
    clear(form);
    form.setAttribute("aria-busy", "true");
    button.setAttribute("aria-disabled", "true");
    try {
        await work();
    } catch (refusal) {
        say(form, { message: refusal.message, field: refusal.field ?? "" }, fields);
    } finally {
        button.removeAttribute("aria-disabled");
        form.removeAttribute("aria-busy");
    }
}

/** Does `work` when a form is sent. `fields` says which input a field of the API is, where it has another name. */
export function onSubmit(form, work, fields) {
    const button = form.querySelector("button[type=submit]");
    form.addEventListener("submit", (event) => {
        event.preventDefault();
        alone(form, button, work, fields);
    });
}

/** Does `work` when a button beside a form is clicked that does the same in another way. */
export function onClick(form, button, work) {
    button.addEventListener("click", () => alone(form, button, work));
}

/** Has a button show and hide what is typed into a password field. */
export function canBeShown(input, button) {
    button.addEventListener("click", () => {
        const hidden = input.type === "password";
        input.type = hidden ? "text" : "password";
        button.textContent = hidden ? "Hide" : "Show";
        button.setAttribute("aria-label", `${button.textContent} password`);
    });
}

/** A time, as people here write it. */
export function when(text) {
    return new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** Its day. */
export function day(text) {
    return new Date(text).toLocaleDateString(undefined, { dateStyle: "medium" });
}

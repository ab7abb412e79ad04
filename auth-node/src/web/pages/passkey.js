// Passkeys: between the JSON of the API (WebAuthn Level 3) and what browsers take and give.

/** Whether this browser knows passkeys. */
export const supported = typeof PublicKeyCredential === "function" && !!navigator.credentials;

function bytes(text) {
    const plain = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(plain, (character) => character.charCodeAt(0));
}

function text(buffer) {
    const plain = String.fromCharCode(...new Uint8Array(buffer));
    return btoa(plain).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

const known = (list) => (list ?? []).map((credential) => ({ ...credential, id: bytes(credential.id) }));

/** Says it in words that people know. */
function explained(error) {
    if (error.name === "InvalidStateError") return new Error("This device is registered already.");
    if (error.name === "SecurityError") {
        return new Error("Passkeys are for another address of this cluster: open it by the address that you were given.");
    }
    return new Error("The passkey was not used: it was cancelled, or took too long. Try again.");
}

const common = (credential) => ({
    id: credential.id,
    rawId: text(credential.rawId),
    type: credential.type,
    authenticatorAttachment: credential.authenticatorAttachment ?? undefined,
    clientExtensionResults: credential.getClientExtensionResults(),
});

/** Makes a credential, as the options of a registration say. */
export async function create(options) {
    const publicKey = options.publicKey ?? options;
    try {
        const credential = await navigator.credentials.create({
            publicKey: {
                ...publicKey,
                challenge: bytes(publicKey.challenge),
                user: { ...publicKey.user, id: bytes(publicKey.user.id) },
                excludeCredentials: known(publicKey.excludeCredentials),
            },
        });
        const { response } = credential;
        return {
            ...common(credential),
            response: {
                clientDataJSON: text(response.clientDataJSON),
                attestationObject: text(response.attestationObject),
                transports: response.getTransports?.() ?? [],
            },
        };
    } catch (error) {
        throw explained(error);
    }
}

/** Has a credential prove that it is there, as the options of a login say. */
export async function get(options) {
    const publicKey = options.publicKey ?? options;
    try {
        const credential = await navigator.credentials.get({
            publicKey: {
                ...publicKey,
                challenge: bytes(publicKey.challenge),
                allowCredentials: known(publicKey.allowCredentials),
            },
        });
        const { response } = credential;
        return {
            ...common(credential),
            response: {
                clientDataJSON: text(response.clientDataJSON),
                authenticatorData: text(response.authenticatorData),
                signature: text(response.signature),
                userHandle: response.userHandle ? text(response.userHandle) : undefined,
            },
        };
    } catch (error) {
        throw explained(error);
    }
}

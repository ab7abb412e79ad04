//! Compiles the protocols with protox: no protoc, no generated code in git.
//!
//! Beside the stubs it writes the descriptor set, the access table of `mezite.v1.AuthService` (from the method
//! option `access`), and `Debug` for messages with a `debug_redact` field, which must not print it.

use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf};

use heck::{ToSnakeCase as _, ToUpperCamelCase as _};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};

type BuildResult<T> = Result<T, Box<dyn Error>>;

fn main() -> BuildResult<()> {
    println!("cargo:rerun-if-changed=v1");
    println!("cargo:rerun-if-changed=peer");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    compile("v1/auth.proto", "auth", &out)?;
    compile("peer/v1/peer.proto", "peer", &out)?;
    let auth = DescriptorPool::decode(fs::read(out.join("auth_descriptor.bin"))?.as_slice())?;
    fs::write(out.join("access.rs"), access_table(&auth)?)?;
    Ok(())
}

fn compile(file: &str, name: &str, out: &std::path::Path) -> BuildResult<()> {
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true).open_file(file)?;
    let bytes = compiler.encode_file_descriptor_set();
    fs::write(out.join(format!("{name}_descriptor.bin")), &bytes)?;

    let pool = DescriptorPool::decode(bytes.as_slice())?;
    let mut config = tonic_prost_build::Config::new();
    config.bytes(["."]);
    config.btree_map(["."]);
    let mut debug = String::new();
    let redacted: Vec<_> = pool.all_messages().filter(redacts).collect();
    config.skip_debug(redacted.iter().map(|message| format!(".{}", message.full_name())));
    for message in &redacted {
        let path = rust_path(message);
        writeln!(
            debug,
            "impl ::std::fmt::Debug for {path} {{\n    fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {{\n        \
             f.debug_struct({:?}).finish_non_exhaustive()\n    }}\n}}",
            message.name()
        )?;
    }
    fs::write(out.join(format!("{name}_debug.rs")), debug)?;
    tonic_prost_build::configure().compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}

fn redacts(message: &MessageDescriptor) -> bool {
    message.fields().any(|field| {
        let redact = field.options().get_field_by_name("debug_redact").and_then(|value| value.as_bool());
        redact.unwrap_or_default()
    })
}

/// Named as prost names it: nested messages live in a module named after their parent.
fn rust_path(message: &MessageDescriptor) -> String {
    let name = message.name().to_upper_camel_case();
    match message.parent_message() {
        None => name,
        Some(parent) => format!("{}::{name}", parent.name().to_snake_case()),
    }
}

fn access_table(pool: &DescriptorPool) -> BuildResult<String> {
    let extension =
        pool.get_extension_by_name("mezite.v1.access").ok_or("no method option mezite.v1.access")?;
    let service =
        pool.get_service_by_name("mezite.v1.AuthService").ok_or("no service mezite.v1.AuthService")?;
    let mut table = String::from("&[\n");
    for method in service.methods() {
        let options = method.options();
        let (classes, rule) = match options.get_extension(&extension).as_message() {
            Some(rule) if options.has_extension(&extension) => (classes(rule)?, opened_by(rule)?),
            _ => return Err(format!("method {} has no access rule", method.name()).into()),
        };
        let method = method.name();
        writeln!(table, "    MethodAccess {{ method: {method:?}, classes: &[{classes}], rule: {rule:?} }},")?;
    }
    table.push_str("]\n");
    Ok(table)
}

/// Resource and verb of the rules in roles that open a method.
fn opened_by(rule: &DynamicMessage) -> BuildResult<Option<(String, String)>> {
    let text = |name| {
        let value = rule.get_field_by_name(name);
        value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    };
    match (text("resource"), text("verb")) {
        (resource, verb) if resource.is_empty() && verb.is_empty() => Ok(None),
        (resource, verb) if resource.is_empty() || verb.is_empty() => {
            Err("an access rule has a resource and a verb, or neither".into())
        }
        both => Ok(Some(both)),
    }
}

fn classes(rule: &DynamicMessage) -> BuildResult<String> {
    let value = rule.get_field_by_name("classes").ok_or("AccessRule has no field classes")?;
    let numbers = value.as_list().unwrap_or_default().iter().filter_map(Value::as_enum_number);
    let names: Vec<_> = numbers
        .map(|number| match number {
            1 => Ok("AccessClass::Public"),
            2 => Ok("AccessClass::User"),
            3 => Ok("AccessClass::Admin"),
            4 => Ok("AccessClass::Agent"),
            5 => Ok("AccessClass::Service"),
            6 => Ok("AccessClass::RemoteUser"),
            7 => Ok("AccessClass::AgentIdentity"),
            other => Err(format!("unknown access class {other}")),
        })
        .collect::<Result<_, _>>()?;
    if names.is_empty() {
        return Err("an access rule without a class".into());
    }
    Ok(names.join(", "))
}

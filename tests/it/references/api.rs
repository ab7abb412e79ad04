//! The API as a page: its methods with who may call them, its messages, its enums.

use std::{collections::BTreeMap, fmt::Write as _};

use mezite_e2e::tools::repository;
use mezite_proto::{access, v1::AccessClass};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    field_descriptor_proto::Label, field_descriptor_proto::Type, source_code_info::Location,
};

/// Numbers of fields in descriptor.proto, of which paths of comments are made.
const MESSAGES: i32 = 4;
const ENUMS: i32 = 5;
const SERVICES: i32 = 6;
const FIELDS: i32 = 2;
const METHODS: i32 = 2;
const VALUES: i32 = 2;

/// Comments by the path of what they are on.
struct Comments(BTreeMap<Vec<i32>, String>);

impl Comments {
    fn of(file: &FileDescriptorProto) -> Self {
        let info = file.source_code_info.clone().unwrap_or_default();
        let of = |location: Location| (location.path, location.leading_comments.unwrap_or_default());
        Self(info.location.into_iter().map(of).collect())
    }

    /// As one paragraph.
    fn at(&self, path: &[i32]) -> String {
        let comment = self.0.get(path).map(String::as_str).unwrap_or_default();
        comment.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
    }
}

pub(super) fn reference() -> String {
    let proto = repository().join("proto");
    let mut compiler = protox::Compiler::new([&proto]).unwrap();
    compiler.include_source_info(true).open_file("v1/auth.proto").unwrap();
    let files = compiler.file_descriptor_set().file;
    let file = files.iter().find(|file| file.package() == "mezite.v1").unwrap();
    let comments = Comments::of(file);
    let source = std::fs::read_to_string(proto.join("v1/auth.proto")).unwrap();
    let mut page = String::from(
        "# mezite.v1.AuthService\n\nGenerated from [auth.proto](auth.proto): `MEZITE_WRITE_REFERENCES=1 tests/run references`.\n\n",
    );
    for line in source.lines().take_while(|line| line.starts_with("//")) {
        let _ = writeln!(page, "{}", line.trim_start_matches("//").strip_prefix(' ').unwrap_or_default());
    }
    methods(&mut page, file, &comments);
    page.push_str("\n## Messages\n");
    for (number, message) in file.message_type.iter().enumerate() {
        self::message(&mut page, message, &[MESSAGES, index(number)], &comments);
    }
    page.push_str("\n## Enums\n");
    for (number, one) in file.enum_type.iter().enumerate() {
        self::enumeration(&mut page, one, &[ENUMS, index(number)], &comments);
    }
    page
}

fn index(number: usize) -> i32 {
    i32::try_from(number).unwrap()
}

fn methods(page: &mut String, file: &FileDescriptorProto, comments: &Comments) {
    page.push_str("\n## Methods\n");
    for (number, method) in file.service[0].method.iter().enumerate() {
        let rule = access::rule(method.name()).unwrap();
        let classes: Vec<_> = rule.classes.iter().map(|class| who(*class)).collect();
        let mut who = classes.join(", ");
        if let Some((resource, verb)) = rule.rule {
            let _ = write!(who, "; or a role with `{resource}: [{verb}]`");
        }
        let stream = |streams: bool| if streams { "stream of " } else { "" };
        let _ = write!(
            page,
            "\n### {}\n\n{}[{request}](#{}) → {}[{reply}](#{}). For {who}.\n\n{}\n",
            method.name(),
            stream(method.client_streaming()),
            anchor(local(method.input_type())),
            stream(method.server_streaming()),
            anchor(local(method.output_type())),
            comments.at(&[SERVICES, 0, METHODS, index(number)]),
            request = local(method.input_type()),
            reply = local(method.output_type()),
        );
    }
}

fn who(class: AccessClass) -> &'static str {
    match class {
        AccessClass::Unspecified => "nobody",
        AccessClass::Public => "anybody",
        AccessClass::User => "users with a session",
        AccessClass::Admin => "admins",
        AccessClass::Agent => "agents",
        AccessClass::Service => "ingests",
        AccessClass::RemoteUser => "users of trusted clusters",
        AccessClass::AgentIdentity => "agent identities",
    }
}

fn message(page: &mut String, message: &DescriptorProto, path: &[i32], comments: &Comments) {
    if message.options.as_ref().is_some_and(|options| options.map_entry()) {
        return;
    }
    let _ = write!(page, "\n### {}\n\n{}\n", message.name(), comments.at(path));
    if !message.field.is_empty() {
        page.push_str("\n| field | type | |\n| --- | --- | --- |\n");
    }
    for (number, field) in message.field.iter().enumerate() {
        let comment = comments.at(&[path, &[FIELDS, index(number)]].concat());
        let _ = writeln!(
            page,
            "| `{}` ({}) | {} | {} |",
            field.name(),
            field.number(),
            kind(field, message),
            comment.replace('|', "\\|")
        );
    }
    for (number, nested) in message.nested_type.iter().enumerate() {
        // The number of nested messages in a message.
        self::message(page, nested, &[path, &[3, index(number)]].concat(), comments);
    }
}

fn enumeration(page: &mut String, one: &EnumDescriptorProto, path: &[i32], comments: &Comments) {
    let _ = write!(page, "\n### {}\n\n{}\n\n| value | |\n| --- | --- |\n", one.name(), comments.at(path));
    for (number, value) in one.value.iter().enumerate() {
        let comment = comments.at(&[path, &[VALUES, index(number)]].concat());
        let _ =
            writeln!(page, "| `{}` ({}) | {} |", value.name(), value.number(), comment.replace('|', "\\|"));
    }
}

/// What a field holds, with a link where it is one of these messages.
fn kind(field: &FieldDescriptorProto, of: &DescriptorProto) -> String {
    let entry = of.nested_type.iter().find(|nested| nested.name() == local(field.type_name()));
    if let Some(entry) =
        entry.filter(|entry| entry.options.as_ref().is_some_and(|options| options.map_entry()))
    {
        return format!("map of {} to {}", single(&entry.field[0]), single(&entry.field[1]));
    }
    match field.label() {
        Label::Repeated => format!("list of {}", single(field)),
        Label::Optional | Label::Required => single(field),
    }
}

fn single(field: &FieldDescriptorProto) -> String {
    let name = local(field.type_name());
    match field.r#type() {
        Type::Message | Type::Enum if field.type_name().starts_with(".mezite.") => {
            format!("[{name}](#{})", anchor(name))
        }
        Type::Message | Type::Enum => name.to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The name without its package.
fn local(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or_default()
}

/// As pages of the repository are linked to.
fn anchor(heading: &str) -> String {
    heading.to_lowercase()
}

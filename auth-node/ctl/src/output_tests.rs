use super::*;

#[test]
fn a_report_has_three_forms() {
    let done = Done::new("done");
    assert_eq!(render(Format::Text, &done).unwrap(), "done\n");
    assert_eq!(render(Format::Json, &done).unwrap(), "{\n  \"message\": \"done\"\n}\n");
    assert_eq!(render(Format::Yaml, &done).unwrap(), "message: done\n");
}

#[test]
fn what_a_host_reports_cannot_steer_the_terminal() {
    let text = table(["a", "b"], [["x\x1b[2J".to_owned(), "y\nz".to_owned()]]);
    assert_eq!(
        text,
        "a          b\nx\u{fffd}[2J  y\u{fffd}z\n".replace("a          b", text.lines().next().unwrap())
    );
    assert!(!text.contains('\x1b') && text.lines().count() == 2);
}

#[derive(Serialize)]
struct Entry {
    name: &'static str,
    size: u32,
}

impl Row<2> for Entry {
    const HEADER: [&'static str; 2] = ["NAME", "SIZE"];

    fn row(&self) -> [String; 2] {
        [self.name.to_owned(), self.size.to_string()]
    }
}

fn listed(format: Format, pages: &[&[Entry]]) -> String {
    let mut listing = Listing::new(format);
    let text: String = pages.iter().map(|page| listing.part(page).unwrap()).collect();
    text + &listing.rest()
}

#[test]
fn the_parts_of_a_list_are_the_list() {
    let entry = |name| Entry { name, size: 5 };
    let json = serde_json::to_string_pretty(&[entry("longer-1"), entry("x"), entry("y")]).unwrap() + "\n";
    for (format, whole) in [
        (Format::Text, "NAME      SIZE\nlonger-1  5\nx         5\ny         5\n"),
        (Format::Yaml, "- name: longer-1\n  size: 5\n- name: x\n  size: 5\n- name: y\n  size: 5\n"),
        (Format::Json, &json),
    ] {
        let one = listed(format, &[&[entry("longer-1"), entry("x"), entry("y")]]);
        let parts: [&[Entry]; 4] = [&[entry("longer-1")], &[], &[entry("x"), entry("y")], &[]];
        assert_eq!((one.as_str(), listed(format, &parts).as_str()), (whole, whole));
    }
    let empty = [Format::Text, Format::Json, Format::Yaml].map(|format| listed(format, &[]));
    assert_eq!(empty, ["NAME  SIZE\n", "[]\n", "[]\n"]);
}

#[test]
fn times_are_rfc_3339() {
    let time = time(Some(&Timestamp { seconds: 1_795_512_000, nanos: 5 }));
    assert_eq!(time.as_deref(), Some("2026-11-24T09:20:00Z"));
    assert_eq!(super::time(None), None);
}

#[test]
fn empty_fields_are_left_out() {
    assert_eq!(fields(&[("a", "1".into()), ("long", String::new())]), "a:    1\n");
}

#[test]
fn a_value_of_several_lines_is_no_further_field() {
    let text = fields(&[("message", "call 1234\nexpires: never\n".into()), ("by", "ann".into())]);
    assert_eq!(text, "message: call 1234\n         expires: never\nby:      ann\n");
}

/// What somebody else wrote, in which the end is read first.
const TURNED: &str = "ann\u{202e}nimda\u{2069}\u{e0041}";

#[test]
fn no_format_lets_a_text_look_like_another_and_programs_get_all_of_it() {
    let done = Done::new(TURNED);
    for format in [Format::Text, Format::Json, Format::Yaml] {
        let report = render(format, &done).unwrap();
        let list = listed(format, &[&[Entry { name: TURNED, size: 1 }], &[Entry { name: "plain", size: 2 }]]);
        for text in [&report, &list] {
            assert!(text.contains("nimda") && !text.chars().any(crate::hidden::is_hidden), "{text}");
        }
        let names =
            |read: Vec<serde_json::Value>| read.iter().map(|entry| entry["name"].clone()).collect::<Vec<_>>();
        let (said, all): (serde_json::Value, Vec<serde_json::Value>) = match format {
            Format::Text => continue,
            Format::Json => (serde_json::from_str(&report).unwrap(), serde_json::from_str(&list).unwrap()),
            Format::Yaml => {
                (serde_norway::from_str(&report).unwrap(), serde_norway::from_str(&list).unwrap())
            }
        };
        assert_eq!(said["message"], TURNED);
        assert_eq!(names(all), [TURNED, "plain"]);
    }
}

#[test]
fn a_journal_is_a_list_for_programs_and_lines_for_people() {
    let told = |format| {
        let mut journal = Journal::new(format);
        let text: String =
            ["one", "two"].iter().map(|word| journal.part(&Done::new(*word)).unwrap() + "|").collect();
        text + &journal.entries.rest(String::new)
    };
    assert_eq!(told(Format::Text), "one\n|two\n|");
    assert_eq!(told(Format::Yaml), "- message: one\n|- message: two\n|");
    let json = told(Format::Json).replace('|', "");
    let read: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert_eq!((read.len(), &read[1]["message"]), (2, &"two".into()));
}

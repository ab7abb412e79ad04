//! Who may call which method: the access rules of `v1/auth.proto`, as a table made at build time.

use crate::v1::AccessClass;

/// The access rule of one method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodAccess {
    /// Name of the method, such as `CreateUser`.
    pub method: &'static str,
    /// Any one of these is enough.
    pub classes: &'static [AccessClass],
    /// And so is a role with a rule for this resource and verb; `None`: no role opens the method.
    pub rule: Option<(&'static str, &'static str)>,
}

/// Every method of `mezite.v1.AuthService`, in the order of the proto file.
pub const METHODS: &[MethodAccess] = include!(concat!(env!("OUT_DIR"), "/access.rs"));

/// The rule of a method, by its name. `None` means: refuse.
pub fn rule(method: &str) -> Option<&'static MethodAccess> {
    METHODS.iter().find(|rule| rule.method == method)
}

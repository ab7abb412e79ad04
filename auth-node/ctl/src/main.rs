//! mezctl
fn main(){}

//! Every bundled machine, every mistake, and random topologies.

use super::*;

fn machine(name: &str) -> Machine {
    resolve(load(name).expect(name), &Overrides::default()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn print() {
    for (name, _) in names() {
        println!("{}", describe(&machine(name)).unwrap());
    }
}

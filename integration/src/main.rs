//! `cargo vm`: see the library.

fn main() -> ! {
    // An ordinary return would wait for threads that block on input.
    std::process::exit(integration::run().into())
}

//! `cargo vm`: see the library.

fn main() -> ! {
    // Not an ordinary return: threads that wait for input must not keep the process.
    std::process::exit(integration::run().into())
}

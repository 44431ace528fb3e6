//! `#[guest_test]`, which registers a test of the guest suites where it is defined.

use proc_macro::{Delimiter, Group, Ident, Punct, Spacing, Span, TokenStream, TokenTree};

/// Registers a function as a test of its module's suite, with what it needs of the guest.
///
/// The arguments are methods of `guest_agent::Needs`, as `NAME` or `NAME = VALUE`:
///
/// ```text
/// #[guest_test(device_arguments = faults::ARGUMENTS, timeout = 120)]
/// fn slow_reads_complete() -> Result<()> { … }
/// ```
///
/// The function itself stays as it is. One that lacks the attribute is dead code, which the suites
/// deny.
#[proc_macro_attribute]
pub fn guest_test(arguments: TokenStream, function: TokenStream) -> TokenStream {
    let (Some(name), Some(needs)) = (name_of(&function), needs_of(arguments)) else {
        let usage = "expected `#[guest_test(NEED, NEED = VALUE, ...)]` on a function";
        let error: TokenStream = format!("compile_error!({usage:?});")
            .parse()
            .unwrap_or_default();
        return function.into_iter().chain(error).collect();
    };
    let mut registration = TokenStream::new();
    registration.extend(path("::inventory::submit!"));
    let mut test = path("crate::test::Test::new");
    let mut fields = path("::core::module_path!(), ::core::stringify!");
    fields.extend([parenthesized(TokenTree::Ident(name.clone()).into())]);
    fields.extend(path(", ::core::line!(),"));
    fields.extend([TokenTree::Ident(name)]);
    fields.extend(path(", || ::guest_agent::Needs::default()"));
    fields.extend(needs);
    test.extend([parenthesized(fields)]);
    registration.extend([TokenTree::Group(Group::new(Delimiter::Brace, test))]);
    function.into_iter().chain(registration).collect()
}

/// The name behind `fn`.
fn name_of(function: &TokenStream) -> Option<Ident> {
    let mut tokens = function.clone().into_iter();
    tokens.find(|token| matches!(token, TokenTree::Ident(word) if word.to_string() == "fn"))?;
    match tokens.next()? {
        TokenTree::Ident(name) => Some(name),
        _ => None,
    }
}

/// `a, b = C` as `.a().b(C)`.
fn needs_of(arguments: TokenStream) -> Option<TokenStream> {
    let mut calls = TokenStream::new();
    let mut tokens = arguments.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let TokenTree::Ident(method) = token else {
            return None;
        };
        let mut value = TokenStream::new();
        match tokens.next() {
            Some(TokenTree::Punct(equals)) if equals.as_char() == '=' => {
                while let Some(token) = tokens.next_if(|token| !is_comma(token)) {
                    value.extend([token]);
                }
                tokens.next();
                if value.is_empty() {
                    return None;
                }
            }
            Some(token) if !is_comma(&token) => return None,
            _ => {}
        }
        calls.extend([
            TokenTree::Punct(Punct::new('.', Spacing::Alone)),
            TokenTree::Ident(method),
            parenthesized(value),
        ]);
    }
    Some(calls)
}

fn is_comma(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',')
}

fn parenthesized(tokens: TokenStream) -> TokenTree {
    let mut group = Group::new(Delimiter::Parenthesis, tokens);
    group.set_span(Span::call_site());
    TokenTree::Group(group)
}

/// Tokens of a text that is known to be made of them.
fn path(text: &str) -> TokenStream {
    text.parse().unwrap_or_default()
}

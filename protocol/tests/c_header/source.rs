//! What the Rust sources declare, documentation included.

use std::path::Path;

use syn::{
    Attribute, Expr, Fields, Ident, ImplItem, Item, Lit, Meta, Token, Type, Visibility, braced,
    parenthesized,
    parse::{ParseStream, Parser},
};

/// Names of the operations' constants, in the order of their codes.
pub const OPERATIONS: [&str; 14] = [
    "OP_NOP",
    "OP_READ",
    "OP_WRITE",
    "OP_COPY",
    "OP_MOVE",
    "OP_FILL",
    "OP_FILL_GUEST",
    "OP_COMPARE",
    "OP_CRC32C",
    "OP_CRC32C_GUEST",
    "OP_READ_CRC32C",
    "OP_WRITE_CRC32C",
    "OP_FLUSH",
    "OP_DISCARD",
];

pub struct Constant {
    pub name: String,
    pub docs: Vec<String>,
}

pub struct Field {
    pub name: String,
    pub docs: Vec<String>,
    /// The Rust type, as written.
    pub kind: String,
    /// Elements of an array.
    pub count: Option<String>,
}

pub struct Struct {
    pub name: String,
    pub docs: Vec<String>,
    pub fields: Vec<Field>,
}

#[derive(Default)]
pub struct Source {
    pub constants: Vec<Constant>,
    pub structs: Vec<Struct>,
}

/// Reads everything public under `src/wire/`.
pub fn read() -> Source {
    let mut source = Source::default();
    for file in ["config.rs", "request.rs", "ioctl.rs"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src/wire")
            .join(file);
        let text = std::fs::read_to_string(path).unwrap();
        for item in syn::parse_file(&text).unwrap().items {
            add(&mut source, item);
        }
    }
    source
}

fn add(source: &mut Source, item: Item) {
    match item {
        Item::Const(item) if public(&item.vis) => source.constants.push(Constant {
            name: item.ident.to_string(),
            docs: docs(&item.attrs),
        }),
        Item::Struct(item) if public(&item.vis) => {
            let Fields::Named(fields) = item.fields else {
                return; // Status: its constants are below.
            };
            let fields = fields.named.into_iter().map(|field| {
                let (kind, count) = kind(&field.ty);
                Field {
                    name: field.ident.unwrap().to_string(),
                    docs: docs(&field.attrs),
                    kind,
                    count,
                }
            });
            source.structs.push(Struct {
                name: item.ident.to_string(),
                docs: docs(&item.attrs),
                fields: fields.collect(),
            });
        }
        Item::Enum(item) if item.ident == "Operation" => {
            assert_eq!(item.variants.len(), OPERATIONS.len());
            for (variant, name) in item.variants.into_iter().zip(OPERATIONS) {
                let letters = name
                    .trim_start_matches("OP_")
                    .replace('_', "")
                    .to_lowercase();
                assert_eq!(variant.ident.to_string().to_lowercase(), letters);
                source.constants.push(Constant {
                    name: name.to_owned(),
                    docs: docs(&variant.attrs),
                });
            }
        }
        Item::Impl(item) if item.trait_.is_none() && is_named(&item.self_ty, "Status") => {
            for item in item.items {
                if let ImplItem::Const(item) = item {
                    source.constants.push(Constant {
                        name: format!("STATUS_{}", item.ident),
                        docs: docs(&item.attrs),
                    });
                }
            }
        }
        Item::Macro(item)
            if item
                .ident
                .as_ref()
                .is_some_and(|name| name == "with_statistics") =>
        {
            source.structs.push(Struct {
                name: "Statistics".to_owned(),
                docs: vec!["Counts of what passed through the driver.".to_owned()],
                fields: statistics.parse2(item.mac.tokens).unwrap(),
            });
        }
        _ => {}
    }
}

/// Parses the rule of `with_statistics`, which lists the fields between two pairs of braces.
fn statistics(input: ParseStream<'_>) -> syn::Result<Vec<Field>> {
    let (pattern, body, list);
    parenthesized!(pattern in input);
    pattern.parse::<Token![$]>()?;
    pattern.parse::<Ident>()?;
    pattern.parse::<Token![:]>()?;
    pattern.parse::<Ident>()?;
    input.parse::<Token![=>]>()?;
    braced!(body in input);
    input.parse::<Token![;]>()?;
    body.parse::<Token![$]>()?;
    body.parse::<Ident>()?;
    body.parse::<Token![!]>()?;
    braced!(list in body);
    let mut fields = Vec::new();
    while !list.is_empty() {
        let docs = docs(&list.call(Attribute::parse_outer)?);
        let name = list.parse::<Ident>()?.to_string();
        list.parse::<Token![,]>()?;
        fields.push(Field {
            name,
            docs,
            kind: "u64".to_owned(),
            count: None,
        });
    }
    Ok(fields)
}

fn public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_named(kind: &Type, name: &str) -> bool {
    matches!(kind, Type::Path(path) if path.path.is_ident(name))
}

fn kind(kind: &Type) -> (String, Option<String>) {
    match kind {
        Type::Path(path) => (path.path.get_ident().unwrap().to_string(), None),
        Type::Array(array) => {
            let Expr::Lit(length) = &array.len else {
                panic!("an array of computed length");
            };
            let Lit::Int(length) = &length.lit else {
                panic!("an array of odd length");
            };
            (
                self::kind(&array.elem).0,
                Some(length.base10_digits().to_owned()),
            )
        }
        _ => panic!("a field type without a C equivalent"),
    }
}

fn docs(attributes: &[Attribute]) -> Vec<String> {
    let mut lines = Vec::new();
    for attribute in attributes {
        let Meta::NameValue(pair) = &attribute.meta else {
            continue;
        };
        if let (true, Expr::Lit(text)) = (pair.path.is_ident("doc"), &pair.value) {
            if let Lit::Str(text) = &text.lit {
                lines.push(text.value().trim().to_owned());
            }
        }
    }
    lines
}

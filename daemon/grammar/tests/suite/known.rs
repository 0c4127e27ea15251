//! Where the grammars of schemas differ from the suite, and why. docs/features.md says the same to users.
//!
//! Owns: the tables. A row that is used less or more often than it says fails the test, as a difference without a row does.

/// How much of the suite there is, and is taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub groups: usize,
    /// Schemas that are taken when all of their words are to be enforced.
    pub strict: usize,
    /// Schemas that are taken when words may be left out.
    pub lenient: usize,
    /// Instances of those that are taken strictly, written in two ways.
    pub texts: usize,
    /// Valid ones of those that are taken leniently alone.
    pub lenient_texts: usize,
}

pub const COUNTS: Counts =
    Counts { groups: 438, strict: 222, lenient: 402, texts: 2_098, lenient_texts: 930 };

/// Words that are refused by name when all are to be enforced.
pub const WORDS: [&str; 16] = [
    "$dynamicAnchor",
    "$dynamicRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// Schemas that are refused by what else they have.
#[derive(Debug)]
pub struct Refusal {
    pub file: &'static str,
    /// Any when it is empty.
    pub group: &'static str,
    /// What the error has.
    pub said: &'static str,
    /// Whether it is also refused when words may be left out.
    pub lenient: bool,
    /// Of refusals, of either way.
    pub count: usize,
}

/// When all words are to be enforced.
const fn strict(
    file: &'static str,
    group: &'static str,
    said: &'static str,
    count: usize,
) -> Refusal {
    Refusal { file, group, said, lenient: false, count }
}

/// Either way.
const fn always(
    file: &'static str,
    group: &'static str,
    said: &'static str,
    groups: usize,
) -> Refusal {
    Refusal { file, group, said, lenient: true, count: 2 * groups }
}

/// What nothing fulfils.
const NOTHING: &str = "schema is false";

/// Schemas elsewhere.
const ELSEWHERE: &str = "which is not in it; nothing is fetched";

/// Branches that do not exclude each other.
const ONE_OF: &str = "branches of a oneOf may hold at once";

pub const REFUSALS: &[Refusal] = &[
    always("allOf.json", "", NOTHING, 2),
    always("anyOf.json", "anyOf with boolean schemas, all false", NOTHING, 1),
    always("oneOf.json", "oneOf with boolean schemas, all false", NOTHING, 1),
    always("ref.json", "$ref to boolean schema false", NOTHING, 1),
    always("dynamicRef.json", "", ELSEWHERE, 5),
    always("optional/cross-draft.json", "", ELSEWHERE, 1),
    always("optional/format-assertion.json", "", ELSEWHERE, 2),
    always("refRemote.json", "", ELSEWHERE, 15),
    always("vocabulary.json", "", ELSEWHERE, 2),
    strict("oneOf.json", "", ONE_OF, 8),
    always("multipleOf.json", "float division = inf", "the limit is 10000", 1),
    // Escapes of ECMAScript alone.
    always("optional/ecmascript-regex.json", "", "regex parse error", 2),
    // Names that may have two patterns.
    always("patternProperties.json", "", "are not disjoint", 3),
    strict("format.json", "idn-email format", "Unknown format: idn-email", 1),
    strict("format.json", "regex format", "Unknown format: regex", 1),
    strict("format.json", "idn-hostname format", "Unknown format: idn-hostname", 1),
    strict("format.json", "json-pointer format", "Unknown format: json-pointer", 1),
    strict(
        "format.json",
        "relative-json-pointer format",
        "Unknown format: relative-json-pointer",
        1,
    ),
    strict("format.json", "iri format", "Unknown format: iri", 1),
    strict("format.json", "iri-reference format", "Unknown format: iri-reference", 1),
    strict("format.json", "uri-reference format", "Unknown format: uri-reference", 1),
    strict("format.json", "uri-template format", "Unknown format: uri-template", 1),
    strict("optional/format/ecmascript-regex.json", "", "Unknown format: regex", 1),
    strict("optional/format/idn-email.json", "", "Unknown format: idn-email", 1),
    strict("optional/format/idn-hostname.json", "", "Unknown format: idn-hostname", 2),
    strict("optional/format/iri-reference.json", "", "Unknown format: iri-reference", 1),
    strict("optional/format/iri.json", "", "Unknown format: iri", 1),
    strict("optional/format/json-pointer.json", "", "Unknown format: json-pointer", 1),
    strict("optional/format/regex.json", "", "Unknown format: regex", 1),
    strict(
        "optional/format/relative-json-pointer.json",
        "",
        "Unknown format: relative-json-pointer",
        1,
    ),
    strict("optional/format/uri-reference.json", "", "Unknown format: uri-reference", 1),
    strict("optional/format/uri-template.json", "", "Unknown format: uri-template", 1),
];

/// Instances that are judged otherwise.
#[derive(Debug)]
pub struct Difference {
    pub file: &'static str,
    pub group: &'static str,
    /// Is in the descriptions of its instances.
    pub test: &'static str,
    /// By the suite.
    pub valid: bool,
    pub count: usize,
    #[expect(dead_code, reason = "for who reads the failure")]
    pub why: &'static str,
}

/// Valid, and never generated.
const fn never(
    why: &'static str,
    file: &'static str,
    group: &'static str,
    test: &'static str,
    count: usize,
) -> Difference {
    Difference { file, group, test, valid: true, count, why }
}

/// Not valid, and may be generated.
const fn taken(
    why: &'static str,
    file: &'static str,
    group: &'static str,
    test: &'static str,
) -> Difference {
    Difference { file, group, test, valid: false, count: 1, why }
}

const WHOLE: &str = "a whole number has no fraction and no exponent";
const ENFORCED: &str = "a format is enforced";
const SPACE: &str = "\\s and \\S are those of Unicode, in which U+FEFF is no space";
const SECOND: &str = "no minute has 61 seconds: few programs read such times";
const MAIL: &str = "addresses have no quotation marks, and no IPv6 address";
const DOTS: &str = "an IPv6 address has no IPv4 address in it";

const LIMITS: &str = "with a limit, a number is no larger than an i64";

pub const DIFFERENCES: &[Difference] = &[
    never(
        LIMITS,
        "optional/bignum.json",
        "maximum integer comparison",
        "comparison works for high numbers",
        1,
    ),
    never(
        LIMITS,
        "optional/bignum.json",
        "minimum integer comparison",
        "comparison works for very negative numbers",
        1,
    ),
    never(
        WHOLE,
        "const.json",
        "const with 0 does not match other zero-like types",
        "float zero",
        1,
    ),
    never(WHOLE, "const.json", "const with 1 does not match true", "float one", 1),
    never(WHOLE, "const.json", "const with -2.0 matches integer and float types", "float -2.0", 1),
    never(
        WHOLE,
        "const.json",
        "float and integers are equal up to 64-bit representation limits",
        "float is valid",
        1,
    ),
    never(WHOLE, "enum.json", "enum with 0 does not match false", "float zero", 1),
    never(WHOLE, "enum.json", "enum with [0] does not match [false]", "[0.0] is valid", 1),
    never(WHOLE, "enum.json", "enum with 1 does not match true", "float one", 1),
    never(WHOLE, "enum.json", "enum with [1] does not match [true]", "[1.0] is valid", 1),
    never(WHOLE, "type.json", "integer type matches integers", "zero fractional part", 1),
    never(WHOLE, "optional/bignum.json", "integer", "bignum", 2),
    never(
        WHOLE,
        "optional/float-overflow.json",
        "all integers are multiples of 0.5, if overflow is handled",
        "overflow",
        1,
    ),
    never(ENFORCED, "format.json", "email format", "only an annotation", 1),
    never(ENFORCED, "format.json", "ipv4 format", "only an annotation", 1),
    never(ENFORCED, "format.json", "ipv6 format", "only an annotation", 1),
    never(ENFORCED, "format.json", "hostname format", "only an annotation", 1),
    never(ENFORCED, "format.json", "date format", "only an annotation", 1),
    never(ENFORCED, "format.json", "date-time format", "only an annotation", 1),
    never(ENFORCED, "format.json", "time format", "only an annotation", 1),
    never(ENFORCED, "format.json", "uri format", "only an annotation", 1),
    never(ENFORCED, "format.json", "uuid format", "only an annotation", 1),
    never(ENFORCED, "format.json", "duration format", "only an annotation", 1),
    never(
        SPACE,
        "optional/ecmascript-regex.json",
        "ECMA 262 \\s matches whitespace",
        "zero-width",
        1,
    ),
    taken(
        SPACE,
        "optional/ecmascript-regex.json",
        "ECMA 262 \\S matches everything but whitespace",
        "zero-width",
    ),
    never(
        SECOND,
        "optional/format/date-time.json",
        "validation of date-time strings",
        "leap second",
        2,
    ),
    never(SECOND, "optional/format/time.json", "validation of time strings", "leap second", 6),
    never(MAIL, "optional/format/email.json", "validation of e-mail addresses", "quoted string", 3),
    never(
        MAIL,
        "optional/format/email.json",
        "validation of e-mail addresses",
        "IPv6-address-literal",
        1,
    ),
    never(DOTS, "optional/format/ipv6.json", "validation of IPv6 addresses", "mixed format", 3),
    never(
        DOTS,
        "optional/format/ipv6.json",
        "validation of IPv6 addresses",
        "a long valid ipv6",
        1,
    ),
];

"""Seeded invoices with their answers: the task behind the quickstart.

Each row asks for the product names and unit prices of one short invoice, in one fixed format.
Splits `train`, `val` and `test` share layouts, vendors and product words. Split `unseen` shares
none of them, so its score says how far the skill carries beyond the forms that were trained.

The price rule: a currency symbol stands right before the amount ("$24.99"), a currency code after it
("24.99 EUR"), on the invoice and in the answer, so a price is copied as it is printed. It is always
the price of one piece, never a line's total, and the quantity is always given, also "(×1)".

All companies and products are invented, no person is named, and the texts are Apache-2.0.
`python -m tools.make_invoices` rewrites the two files in `ftkit/samples`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

INSTRUCTION = "Extract all product names and prices from the following invoice text."

SIZES = {"train": 600, "val": 100, "test": 100, "unseen": 100}

LONGEST = 270  # characters of a prompt: keeps a row under 256 tokens of SmolLM2

ENDINGS = (0, 25, 49, 50, 75, 90, 95, 99)  # hundredths of a price

SAMPLES = Path(__file__).parents[1] / "ftkit/samples"


@dataclass(frozen=True)
class Layout:
    """One way to print an invoice, as templates."""

    head: str
    line: str  # one product
    joiner: str = "\n"


@dataclass(frozen=True)
class Pool:
    """What one group of splits draws from."""

    layouts: dict[str, Layout]
    vendors: tuple[str, ...]
    styles: tuple[str, ...]
    nouns: tuple[str, ...]
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One invoice line; the price of one piece is in hundredths."""

    name: str
    quantity: int
    cents: int


def words(text: str) -> tuple[str, ...]:
    """Split a comma-separated list, keeping the blanks."""
    return tuple(text.split(","))


# How an invoice may print an amount in its currency.
NOTATIONS = words("${},€{},£{},{} USD,{} EUR,{} CHF,{} SEK")

SEEN = Pool(
    layouts={
        "product_lines": Layout("{vendor}\nInvoice #{number}\n", "Product: {name} x{quantity} @ {price} each"),
        "table": Layout("{vendor}\nItem | Qty | Price\n", "{name} | {quantity} | {price}"),
        "times": Layout("Bill {number} from {vendor}\n", "{quantity} × {name} — {price}"),
        "csv": Layout("{vendor}\nproduct,price,quantity\n", "{name},{price},{quantity}"),
        "email": Layout("{vendor} has shipped ", "{name}, {quantity} at {price} each", joiner="; "),
        "receipt": Layout("*** {vendor} ***\n", "{name}\n  {quantity} @ {price}"),
        "sku": Layout("{vendor} invoice\n", "[{sku}] {name}, qty {quantity}, {price}"),
        "fields": Layout("Seller: {vendor}\n", "Article: {name}\nQuantity: {quantity}\nPrice: {price}"),
    },
    vendors=words(
        "Alderbrook Supply,Bluefern Office,Cobaltry,Dunmarsh Trading,Eastwick Tools,Fennimoor Goods,"
        "Glimmerby,Harrowgate Parts,Inkwater Paper,Kestrelworks,Lumora Store,Mossgate Depot,"
        "Nettlefield,Orchid Lane Shop,Pebblecroft,Quillmont,Ravenshore Retail,Saltmarsh Market,"
        "Tidewell Direct,Umberline,Willowmere,Yarrowby"
    ),
    styles=words(
        "Widget,Gadget,Desk,Garden,Office,Travel,Kitchen,Steel,Bamboo,Cotton,Solar,Wireless,Compact,"
        "Folding,Studio,Classic,Urban,Nordic,Carbon,Ocean,Maple,Smart,Turbo,Eco"
    ),
    nouns=words(
        "Lamp,Chair,Mouse,Keyboard,Backpack,Kettle,Notebook,Stapler,Monitor,Charger,Bottle,Blanket,"
        "Drill,Hammer,Clock,Mirror,Speaker,Camera,Toaster,Basket,Shelf,Umbrella,Wallet,Cable,Router,"
        "Tripod,Scale,Gloves,Jacket,Tent"
    ),
    variants=words(",,,, Pro, Plus, Mini, XL, V2, 3-pack"),
)

UNSEEN = Pool(
    layouts={
        "price_first": Layout("{vendor} | statement {number}\n", "{price} | {name} | {quantity}"),
        "semicolon_keys": Layout("from={vendor}\n", "count={quantity};desc={name};each={price}"),
        "letter": Layout(
            "{vendor} bills you for: ", "{name} (ordered: {quantity}, price per unit {price})", joiner="; "
        ),
        "bullets": Layout("Purchase from {vendor}\n", "* {name} -> {price}/unit, {quantity} units"),
    },
    vendors=words("Zephyrine Wares,Briarstone,Copperleaf Outlet,Driftholm,Elmspire Hardware,Foxglade,Hollowpine"),
    styles=words("Alpine,Velvet,Hybrid,Vintage,Arctic,Royal,Hydro,Magnetic,Rustic,Metro"),
    nouns=words(
        "Helmet,Printer,Curtain,Blender,Ladder,Pillow,Scanner,Bicycle,Teapot,Vacuum,Guitar,Headset,Carpet,Thermostat"
    ),
    variants=words(",,,, Max, Lite, Duo, S5, Kit"),
)

ABOVE = words("Order no. {reference},Date: 2026-{month:02}-{day:02},Phone: 555-01{day:02}")

BELOW = words("Subtotal: {subtotal},Shipping: {fee},Tax: {fee},Discount: -{fee},Due by 2026-{month:02}-{day:02}")


def amount(cents: int) -> str:
    """Write hundredths with two decimals and no thousands separator."""
    return f"{cents // 100}.{cents % 100:02}"


def answer(mark: str, items: list[Item]) -> str:
    """Write the wanted answer, one product a line in the invoice's order."""
    price = "{} " + mark if mark.isalpha() else mark + "{}"
    lines = [f"- {item.name}: {price.format(amount(item.cents))} (×{item.quantity})" for item in items]
    return "\n".join(["Products:", *lines])


def draw_items(rng: Random, pool: Pool) -> list[Item]:
    """Draw one to three products of different kinds."""
    count = rng.choice((1, 1, 1, 1, 1, 2, 2, 2, 3))
    return [
        Item(
            name=f"{rng.choice(pool.styles)} {noun}{rng.choice(pool.variants)}",
            quantity=rng.choice((1, 1, 1, 2, 2, 3, 4, 5, 6, 8, 10, 12)),
            cents=100 * rng.randrange(2, rng.choice((20, 100, 200))) + rng.choice(ENDINGS),
        )
        for noun in rng.sample(pool.nouns, count)
    ]


def draw_extra(rng: Random, templates: tuple[str, ...], notation: str, subtotal: int) -> str:
    """Draw a line that a careless reader mistakes for a product, or nothing."""
    if rng.random() < 0.7:
        return ""
    return rng.choice(templates).format(
        reference=rng.randrange(10_000, 99_999),
        month=rng.randrange(1, 13),
        day=rng.randrange(1, 29),
        subtotal=notation.format(amount(subtotal)),
        fee=notation.format(amount(rng.randrange(150, 3_000))),
    )


def draw_text(rng: Random, layout: Layout, vendor: str, notation: str, items: list[Item]) -> str:
    """Print the items in one layout, sometimes with distracting lines around them."""
    printed = [
        layout.line.format(
            name=item.name,
            quantity=item.quantity,
            price=notation.format(amount(item.cents)),
            total=notation.format(amount(item.cents * item.quantity)),
            sku=f"{item.name[:2].upper()}-{rng.randrange(100, 1000)}",
        )
        for item in items
    ]
    body = layout.head.format(vendor=vendor, number=rng.randrange(1_000, 10_000))
    body += layout.joiner.join(printed)
    subtotal = sum(item.cents * item.quantity for item in items)
    extras = [draw_extra(rng, templates, notation, subtotal) for templates in (ABOVE, BELOW)]
    return "\n".join(part for part in (extras[0], body, extras[1]) if part)


def draw_row(rng: Random, split: str, index: int) -> tuple[dict[str, Any], str]:
    """Draw one chat and its prompt; layouts take turns, so that any run of rows holds them evenly."""
    pool = UNSEEN if split == "unseen" else SEEN
    name = list(pool.layouts)[index % len(pool.layouts)]
    vendor = rng.choice(pool.vendors)
    notation = rng.choice(NOTATIONS)
    items = draw_items(rng, pool)
    prompt = f"{INSTRUCTION}\n\n{draw_text(rng, pool.layouts[name], vendor, notation, items)}"
    reply = answer(notation.format("").strip(), items)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    return {"split": split, "layout": name, "vendor": vendor, "messages": messages}, prompt


def generate(seed: int = 0) -> list[dict[str, Any]]:
    """Generate all rows, in the order train, val, test, unseen; the same seed gives the same rows."""
    rng = Random(seed)
    rows: list[dict[str, Any]] = []
    prompts: set[str] = set()
    for split, size in SIZES.items():
        for index in range(size):
            row, prompt = draw_row(rng, split, index)
            while prompt in prompts or len(prompt) > LONGEST:
                row, prompt = draw_row(rng, split, index)
            prompts.add(prompt)
            rows.append({"id": f"inv-{len(rows) + 1:04}", **row})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, in UTF-8 with Unix line ends."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8", newline="\n")


def main() -> None:
    """Rewrite the committed samples from seed 0."""
    for name, unseen in {"invoices": False, "invoices_unseen": True}.items():
        write_jsonl(SAMPLES / f"{name}.jsonl", [r for r in generate() if (r["split"] == "unseen") is unseen])


if __name__ == "__main__":
    main()

"""Exports of a simulated shop as five systems write them: Shopify, WooCommerce, GA4, Olist, and a Chinese shop.

`python -m tests.shop_exports SYSTEM DATA FOLDER` writes the data set of `shelfwise simulate` in the layout of a system,
so that the pages of `docs/shops` can be followed without a shop's own files.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

Row = Mapping[str, Any]


class Shop(NamedTuple):
    """Rows of a data set. orders: the purchases of each user in one session, in the order of time."""

    items: Sequence[Row]
    events: Sequence[Row]
    orders: Sequence[Sequence[Row]]


def read_shop(data: Path) -> Shop:
    """The shop of a data set."""
    events = pq.read_table(data / "events.parquet").sort_by("timestamp").to_pylist()
    orders: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for event in events:
        if event["event"] == "purchase":
            orders[event["user_id"], event["session_id"]].append(event)
    return Shop(pq.read_table(data / "items.parquet").to_pylist(), events, list(orders.values()))


def _write(path: Path, header: str, rows: Iterable[Sequence[Any]], encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)


def _mail(user: str) -> str:
    return f"{user}@example.com"


def _html(text: str | None) -> str:
    return f"<p>{text}</p>" if text else ""


# --- Shopify ---------------------------------------------------------------------------------------------------


def write_shopify(shop: Shop, folder: Path) -> None:
    """Products with two variants each and a row for a second picture; orders with their columns on the first line."""
    products = []
    for item in shop.items:
        handle, price = item["item_id"], item["price"] or ""
        title, text, tags = item["title"], _html(item["description"]), ", ".join(item["tags"] or [])
        first = [handle, title, text, item["brand"] or "", item["category"] or "", tags, "true"]
        products.append([*first, "Size", "S", f"{handle}-S", price, f"https://cdn.example.com/{handle}.jpg", 1])
        products.append([handle, *[""] * 7, "M", f"{handle}-M", price, "", ""])
        products.append([handle, *[""] * 10, f"https://cdn.example.com/{handle}-back.jpg", 2])
    _write(
        folder / "products_export.csv",
        "Handle,Title,Body (HTML),Vendor,Type,Tags,Published,Option1 Name,Option1 Value,Variant SKU,Variant Price,"
        "Image Src,Image Position",
        products,
    )
    title_of = {item["item_id"]: item["title"] for item in shop.items}
    orders: list[list[Any]] = []
    for number, lines in enumerate(shop.orders, 1001):
        at = lines[0]["timestamp"].strftime("%Y-%m-%d %H:%M:%S +0000")
        status = "refunded" if number % 20 == 0 else "paid"
        for place, line in enumerate(lines):
            size = "SM"[place % 2]
            own = [_mail(line["user_id"]), status, at, ""] if place == 0 else ["", "", "", ""]
            what = f"{title_of[line['item_id']]} - {size}"
            price = line["value"] or ""
            orders.append([f"#{number}", *own[:2], *own[2:], 1, what, price, f"{line['item_id']}-{size}"])
    _write(
        folder / "orders_export.csv",
        "Name,Email,Financial Status,Created at,Cancelled at,Lineitem quantity,Lineitem name,Lineitem price,"
        "Lineitem sku",
        orders,
    )


# --- WooCommerce -----------------------------------------------------------------------------------------------


def write_woocommerce(shop: Shop, folder: Path) -> None:
    """The export of products, and orders of a plug-in with one row per item."""
    number = {item["item_id"]: n for n, item in enumerate(shop.items, 101)}
    _write(
        folder / "wc-product-export.csv",
        "ID,Type,SKU,Name,Published,Short description,Description,Regular price,Categories,Tags,Brands",
        (
            [
                *(number[i["item_id"]], "simple", i["item_id"], i["title"], 1, "", _html(i["description"])),
                *(i["price"] or "", i["category"] or "", ", ".join(i["tags"] or []), i["brand"] or ""),
            ]
            for i in shop.items
        ),
        "utf-8-sig",
    )
    rows = []
    for order, lines in enumerate(shop.orders, 5001):
        status = "Cancelled" if order % 20 == 0 else "Completed"
        at = lines[0]["timestamp"].strftime("%Y-%m-%d %H:%M")
        for place, line in enumerate(lines, 1):
            own = [order, status, at, _mail(line["user_id"])]
            rows.append([*own, place, line["item_id"], 1, line["value"] or ""])
    _write(
        folder / "orders.csv",
        "Order Number,Order Status,Order Date,Email (Billing),Item #,SKU,Quantity,Item Cost",
        rows,
    )


# --- GA4 -------------------------------------------------------------------------------------------------------


def write_ga4(shop: Shop, folder: Path) -> None:
    """A file of JSON lines for each day, as BigQuery exports the tables `events_YYYYMMDD`; numbers are texts."""
    item_of = {item["item_id"]: item for item in shop.items}
    names = {"view": "view_item", "cart": "add_to_cart", "purchase": "purchase", "click": "select_item"}
    days: dict[str, list[str]] = defaultdict(list)

    def items(events: Sequence[Row]) -> list[dict[str, Any]]:
        out = []
        for event in events:
            item = item_of[event["item_id"]]
            place = {} if event["position"] is None else {"item_list_index": str(event["position"])}
            named = {"item_id": item["item_id"], "item_name": item["title"], "item_brand": item["brand"]}
            out.append({**named, "item_category": item["category"], "price": item["price"], "quantity": "1", **place})
        return out

    def record(name: str, events: Sequence[Row], **more: Any) -> None:
        event = events[0]
        at: datetime = event["timestamp"]
        params = [{"key": "ga_session_id", "value": {"int_value": str(int(event["session_id"][1:]) + 1)}}]
        out = {
            "event_date": at.strftime("%Y%m%d"),
            "event_timestamp": str(round(at.timestamp() * 1e6)),
            "event_name": name,
            "event_params": params,
            "user_pseudo_id": event["user_id"],
            "device": {"category": event["device"] or "desktop"},
            "items": items(events),
            **more,
        }
        days[at.strftime("%Y%m%d")].append(json.dumps(out))

    lists: dict[str, list[Row]] = defaultdict(list)
    for event in shop.events:
        if event["event"] == "impression":
            lists[event["request_id"]].append(event)
        elif event["event"] in names and event["event"] != "purchase":
            record(names[event["event"]], [event])
    for shown in lists.values():
        record("view_item_list", sorted(shown, key=lambda event: event["position"]))
    for number, lines in enumerate(shop.orders):
        record("purchase", lines, ecommerce={"transaction_id": f"T{number:06}"})
    for day, records in days.items():
        (folder / f"events_{day}.json").write_text("\n".join(records) + "\n", "utf-8")


# --- Olist -----------------------------------------------------------------------------------------------------

_REVIEWED = timedelta(days=3)


def write_olist(shop: Shop, folder: Path) -> None:
    """The tables of orders, their lines, products, customers and reviews."""
    moment = "%Y-%m-%d %H:%M:%S"
    orders, lines, customers, reviews = [], [], [], []
    for number, bought in enumerate(shop.orders):
        order, customer = f"o{number:06}", f"c{number:06}"
        at: datetime = bought[0]["timestamp"]
        orders.append([order, customer, "canceled" if number % 30 == 29 else "delivered", at.strftime(moment)])
        customers.append([customer, bought[0]["user_id"], "01310", "sao paulo", "SP"])
        lines += [[order, n, b["item_id"], "s1", b["value"] or "", "9.90"] for n, b in enumerate(bought, 1)]
        if number % 3 == 0 and at + _REVIEWED < shop.events[-1]["timestamp"]:
            told = (at + _REVIEWED).strftime(moment)
            reviews.append([f"r{number:06}", order, 1 + number % 5, told, told])
    _write(folder / "olist_orders_dataset.csv", "order_id,customer_id,order_status,order_purchase_timestamp", orders)
    _write(
        folder / "olist_order_items_dataset.csv",
        "order_id,order_item_id,product_id,seller_id,price,freight_value",
        lines,
    )
    _write(
        folder / "olist_customers_dataset.csv",
        "customer_id,customer_unique_id,customer_zip_code_prefix,customer_city,customer_state",
        customers,
    )
    _write(
        folder / "olist_order_reviews_dataset.csv",
        "review_id,order_id,review_score,review_creation_date,review_answer_timestamp",
        reviews,
    )
    _write(
        folder / "olist_products_dataset.csv",
        "product_id,product_category_name,product_weight_g",
        ([i["item_id"], i["category"] or "", round(1000 * (i["weight_kg"] or 0)) or ""] for i in shop.items),
    )


# --- a Chinese shop --------------------------------------------------------------------------------------------

_LOOKS = ("景德镇", "手工", "复古", "北欧风", "日式", "简约", "加厚", "便携")
_THINGS = ("陶瓷杯", "茶壶", "毛巾", "台灯", "书架", "帆布包", "香薰蜡烛", "竹砧板", "羊毛毯", "保温壶")
_SORTS = (
    "家居>餐厨",
    "家居>餐厨",
    "家居>纺织",
    "家居>灯具",
    "家居>家具",
    "箱包",
    "家居>香氛",
    "家居>餐厨",
    "家居>纺织",
    "户外",
)
_KINDS = {"view": "浏览", "click": "点击", "cart": "加购", "purchase": "购买"}


def write_chinese(shop: Shop, folder: Path) -> None:
    """A table of products and one of actions, in GB18030, with Chinese headers, kinds and dates."""
    rows = []
    for n, item in enumerate(shop.items):
        thing = n % len(_THINGS)
        title = f"{_LOOKS[n // len(_THINGS) % len(_LOOKS)]} {_THINGS[thing]}{n // 80 + 1}号"
        on: datetime | None = item["available_from"]
        day = f"{on.year}年{on.month}月{on.day}日" if on else ""
        price = f"￥{item['price']:,.2f}" if item["price"] else ""
        rows.append(
            [item["item_id"], title, _SORTS[thing], "窑与人" if n % 3 else "", price, day, f"{title}，精选材质"]
        )
    header = "商品编号,商品名称,类目,品牌,价格,上架时间,商品描述"
    _write(folder / "商品.csv", header, rows, "gb18030")
    _write(
        folder / "用户行为.csv",
        "用户编号,商品编号,行为类型,行为时间",
        (
            [e["user_id"], e["item_id"], _KINDS[e["event"]], e["timestamp"].strftime("%Y-%m-%d %H:%M:%S")]
            for e in shop.events
            if e["event"] in _KINDS
        ),
        "gb18030",
    )


SYSTEMS: Mapping[str, Callable[[Shop, Path], None]] = {
    "shopify": write_shopify,
    "woocommerce": write_woocommerce,
    "ga4": write_ga4,
    "olist": write_olist,
    "chinese": write_chinese,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    SYSTEMS[options.system](read_shop(options.data), options.folder)


if __name__ == "__main__":
    main()

"""Presets of shops, search and recommendation services, and data sets with ratings or purchases.

Each export is a few rows of our own with the traps of its format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.offline.ingest.exports import import_export, lines

T0 = 1_760_000_000
DAY = "2025-10-09"
"""The day of T0, which is 08:53:20 UTC."""


@dataclass(frozen=True)
class Export:
    """Files by name, and what becomes of them.

    events: (kind, user, item, value) of all events, sorted. items, users: by ID, some of the columns of some rows.
    more: columns of the first event of a kind. refused: rows that become no event or item, by reason. absent: IDs that
    no item has.
    """

    preset: str
    files: Mapping[str, str | bytes]
    events: list[tuple[str, str, str, float | None]]
    items: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    users: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


WHERE = "row excluded by `where`"

EXPORTS: Mapping[str, Export] = {
    "an Algolia event names several objects, and old ones tell the kind by their name": Export(
        "algolia_insights",
        {
            "log.jsonl": lines(
                {"eventType": "click", "eventName": "Hit", "userToken": "anon", "authenticatedUserToken": "ann"}
                | {"timestamp": T0 * 1000, "objectIDs": ["a"], "positions": [3], "queryID": "q1"},
                {"eventType": "conversion", "eventName": "Order", "eventSubtype": "purchase", "userToken": "bob"}
                | {"timestamp": T0 * 1000, "objectIDs": ["a", "b"], "objectData": [{"quantity": 2}, {"quantity": 3}]},
                {"eventType": "conversion", "eventName": "In basket", "userToken": "bob", "timestamp": T0 * 1000}
                | {"objectIDs": ["b"]},
                {"eventType": "conversion", "eventName": "Liked", "userToken": "bob", "timestamp": T0 * 1000}
                | {"objectIDs": ["b"]},
                {"eventType": "click", "eventName": "Facet", "userToken": "bob", "timestamp": T0 * 1000}
                | {"filters": ["size:1"]},
            ),
            "index.json": json.dumps(
                {
                    "hits": [
                        {"objectID": "a", "name": "Pot", "price": 5, "hierarchicalCategories": {"lvl0": ["Cook"]}},
                        {"objectID": "b", "title": "Pan", "categories": ["Cook", "Pans"], "_highlightResult": {"x": 1}},
                    ]
                }
            ),
        },
        [
            ("cart", "bob", "b", None),
            ("click", "ann", "a", None),
            ("purchase", "bob", "a", 2.0),
            ("purchase", "bob", "b", 3.0),
        ],
        {"a": {"title": "Pot", "category": "Cook", "price": 5.0}, "b": {"title": "Pan", "category": "Cook > Pans"}},
        more={"click": {"position": 2, "request_id": "q1"}},
        refused={"unknown_event": 1, WHERE: 1},
    ),
    "a shown list of Personalize stands in a cell, and its event value is money": Export(
        "amazon_personalize",
        {
            "acts.csv": "USER_ID,ITEM_ID,TIMESTAMP,EVENT_TYPE,EVENT_VALUE,IMPRESSION\n"
            f"u,b,{T0},Click,,a|b\nu,b,{T0 + 9},Purchase,19.5,\nu,a,{T0 + 10},Watch,,\n,a,{T0},Watch,,\n",
            "things.csv": f"ITEM_ID,CATEGORY_L1,CATEGORY_L2,GENRES,CREATION_TIMESTAMP\n"
            f"a,Home,Rugs,x|y,{T0}\nb,Home,,,\n",
            "people.csv": "USER_ID,AGE\nu,41\nv,\n",
        },
        [
            ("click", "u", "b", None),
            ("impression", "u", "a", None),
            ("impression", "u", "b", None),
            ("purchase", "u", "b", None),
            ("view", "u", "a", None),
        ],
        {"a": {"category": "Home > Rugs", "GENRES": ["x", "y"], "available_from": at(f"{DAY}T08:53:20")}},
        {"u": {"AGE": 41.0}, "v": {"AGE": None}},
        {"impression": {"position": 0, "request_id": f"u:{T0}"}, "click": {"request_id": f"u:{T0}"}},
        {"missing_user": 1},
    ),
    "the product of an Amazon review is its parent, and its title is not the product's": Export(
        "amazon_reviews_2023",
        {
            "Rugs.jsonl": lines(
                {
                    "rating": 4.0,
                    "title": "Fine",
                    "asin": "a1",
                    "parent_asin": "a",
                    "user_id": "u",
                    "timestamp": T0 * 1000,
                },
                {
                    "rating": 2.0,
                    "title": "Bad",
                    "asin": "b",
                    "parent_asin": "b",
                    "user_id": "u",
                    "timestamp": T0 * 1000,
                },
            ),
            "meta_Rugs.jsonl": lines(
                {"parent_asin": "a", "title": "Rug", "average_rating": 4.1, "price": None, "store": None}
                | {"description": ["Red.", "Wool &amp; silk."], "categories": ["Home", "Rugs"]}
                | {"details": {"Brand": "Loom", "Size": "L", "Rank": {"Home": 3}}, "features": ["warm"]},
                {"parent_asin": "b", "title": "Mat", "average_rating": 3.0, "price": "from 7.00", "store": "Kit"},
            ),
        },
        [("rating", "u", "a", 4.0), ("rating", "u", "b", 2.0)],
        {
            "a": {"title": "Rug", "price": None, "brand": "Loom", "category": "Home > Rugs", "Size": "L"}
            | {"description": "Red. Wool & silk.", "features": ["warm"]},
            "b": {"price": 7.0, "brand": "Kit"},
        },
    ),
    "older Amazon reviews have other names, and categories are lists of paths": Export(
        "amazon_reviews_2018",
        {
            "reviews.json": lines({"reviewerID": "u", "asin": "a", "overall": 5.0, "unixReviewTime": T0}),
            "meta.json": "{'asin': 'a', 'title': \"Kid's rug\", 'price': 7.5, 'categories': [['Home', 'Rugs']]}",
        },
        [("rating", "u", "a", 5.0)],
        {"a": {"title": "Kid's rug", "price": 7.5, "category": "Home > Rugs"}},
    ),
    "an inch mark in a merchant feed is text, and a GTIN keeps its zeros": Export(
        "google_merchant",
        {
            "feed.txt": "id\ttitle\tlink\timage link\tprice\tproduct type\tgtin\titem group id\n"
            'a\t9" Pot\t/a\t//cdn.test/a.jpg\t1,299.00 EUR\tCook > Pots\t0042\t77\n'
            "b\tPan\t/b\t/b.jpg\tEUR 4.50\t\t0043\t\n",
            "events.csv": f"event,user_id,item_id,timestamp\nview,u,a,{T0}\n",
        },
        [("view", "u", "a", None)],
        {
            "a": {
                "title": '9" Pot',
                "price": 1299.0,
                "category": "Cook > Pots",
                "gtin": "0042",
                "group_id": "77",
                "item_group_id": "77",
            }
            | {"image_url": "https://cdn.test/a.jpg"},
            "b": {"price": 4.5, "group_id": None, "image_url": None},  # /b.jpg has no host
        },
    ),
    "products of a Google Retail search are a list, and a variant is its product": Export(
        "google_retail",
        {
            "events.jsonl": lines(
                {"eventType": "search", "visitorId": "v", "eventTime": f"{DAY}T10:00:00Z", "searchQuery": "pot"}
                | {"productDetails": [{"product": {"id": "a"}}, {"product": {"id": "b-1"}}], "offset": 20},
                {"eventType": "search", "visitorId": "v", "eventTime": f"{DAY}T10:01:00Z"},
                {"eventType": "purchase-complete", "visitorId": "v", "eventTime": f"{DAY}T12:00:00+01:00"}
                | {"userInfo": {"userId": "u"}, "productDetails": [{"product": {"id": "b-1"}, "quantity": 2}]},
                {"eventType": "remove-from-cart", "visitorId": "v", "eventTime": f"{DAY}T10:02:00Z"}
                | {"productDetails": [{"product": {"id": "a"}}]},
            ),
            "products.jsonl": lines(
                {"id": "a", "title": "Pot", "categories": ["Cook > Pots", "Sale"], "priceInfo": {"price": 5}}
                | {"attributes": {"colour": {"text": ["red", "blue"]}, "litres": {"numbers": [1.5]}}},
                {"id": "b", "type": "PRIMARY", "primaryProductId": "b", "title": "Pan", "categories": ["Cook"]},
                {"id": "b-1", "type": "VARIANT", "primaryProductId": "b", "title": "Pan S", "categories": ["Cook"]}
                | {"priceInfo": {"price": 8}},
            ),
        },
        [("impression", "v", "a", None), ("impression", "v", "b", None), ("purchase", "u", "b", 2.0)],
        {
            "a": {"category": "Cook > Pots", "categories": ["Cook > Pots", "Sale"], "colour": ["red", "blue"]}
            | {"litres": 1.5, "price": 5.0},
            "b": {"title": "Pan", "price": 8.0},
        },
        more={"impression": {"position": 20, "query": "pot"}, "purchase": {"timestamp": at(f"{DAY}T11:00:00")}},
        refused={"event remove-from-cart": 1, WHERE: 1},
        absent=("b-1",),
    ),
    "Gorse's API writes JSON; the year 1 is no moment; labels are an object or a list": Export(
        "gorse",
        {
            "f.jsonl": lines(
                {"FeedbackType": "read", "UserId": "u", "ItemId": "a", "Timestamp": f"{DAY}T10:00:00Z"},
                {"FeedbackType": "star", "UserId": "u", "ItemId": "a", "Timestamp": f"{DAY}T10:00:00Z"},
                {"FeedbackType": "click", "UserId": "u", "ItemId": "a", "Timestamp": "0001-01-01T00:00:00Z"},
            ),
            "i.jsonl": lines(
                {"ItemId": "a", "IsHidden": True, "Categories": ["Cook", "Pots"], "Timestamp": "0001-01-01T00:00:00Z"}
                | {"Labels": {"brand": "Kit", "sizes": ["S", "M"]}, "Comment": "Pot"}
            ),
            "u.csv": 'user_id,labels\nu,"[""vip""]"\nv,"{""age"": 41}"\n',
        },
        [("view", "u", "a", None)],
        {
            "a": {"title": "Pot", "category": "Cook", "categories": ["Cook", "Pots"], "brand": "Kit"}
            | {"sizes": ["S", "M"], "available_from": None}
        },
        {"u": {"labels": ["vip"], "age": None}, "v": {"age": 41.0}},
        refused={"unknown_event": 1, "timestamp_too_old": 1},
    ),
    "moments of Gorse's dashboard have zones of Go": Export(
        "gorse",
        {
            "f.csv": "feedback_type,user_id,item_id,time_stamp\n"
            f"buy,u,a,{DAY} 11:00:00.25 +0100 CET\nread,u,a,{DAY} 13:00:00 +0300 +03\n"
        },
        [("purchase", "u", "a", None), ("view", "u", "a", None)],
        more={"purchase": {"timestamp": at(f"{DAY}T10:00:00.25")}, "view": {"timestamp": at(f"{DAY}T10:00:00")}},
    ),
    "articles of H&M keep their zeros, and None is a word of a customer's": Export(
        "hm_fashion",
        {
            "t.csv": f"t_dat,customer_id,article_id,price,sales_channel_id\n{DAY},c,0042,0.05,2\n",
            "a.csv": "article_id,product_code,prod_name,product_type_no,product_type_name,"
            "index_group_name,detail_desc\n"
            '0042,004,Vest,7,Vest top,Ladieswear,"Soft, warm"\n0043,004,Vest,7,Vest top,Ladieswear,\n',
            "c.csv": "customer_id,fashion_news_frequency,age\nc,None,\nd,NONE,30\n",
        },
        [("purchase", "c", "0042", None)],
        {"0042": {"title": "Vest", "category": "Ladieswear > Vest top", "product_code": "004", "price": None}},
        {"c": {"fashion_news_frequency": "None", "age": None}, "d": {"age": 30.0}},
        absent=("42",),
    ),
    "MovieLens 100K has no headers, a flag for each genre, and splits that repeat its ratings": Export(
        "movielens_100k",
        {
            "u.data": f"1\t7\t4\t{T0}\n2\t7\t3\t{T0 + 1}\n",
            "u1.base": f"1\t7\t4\t{T0}\n",
            "u.item": ("7|Café (1995)|02-Jan-1995||http://x|" + "0|" * 17 + "1|1\n").encode("latin-1"),
            "u.genre": "None|0\nWar|17\nWestern|18\n\n",
            "u.user": "1|30|M|writer|00420\n",
        },
        [("rating", "1", "7", 4.0), ("rating", "2", "7", 3.0)],
        {"7": {"title": "Café (1995)", "genres": ["War", "Western"], "release_date": at("1995-01-02")}},
        {"1": {"zip_code": "00420", "age": 30.0}},
    ),
    "Matomo nests products in actions of visits, older versions in custom variables": Export(
        "matomo_visits",
        {
            "visits.json": json.dumps(
                [
                    {
                        "idVisit": "1",
                        "visitorId": "v",
                        "userId": None,
                        "deviceType": "Telefon",
                        "deviceTypeIcon": "plugins/devices/smartphone.png",
                        "actionDetails": [
                            {"type": "action", "timestamp": T0, "productViewSku": "a", "productViewName": "Pot"}
                            | {"productViewPrice": 5.5, "productViewCategories": ["Cook", "Pots"]},
                            {
                                "type": "action",
                                "timestamp": T0 + 1,
                                "customVariables": {
                                    "3": {"customVariablePageName3": "_pks", "customVariablePageValue3": "b"},
                                    "4": {"customVariablePageName4": "_pkn", "customVariablePageValue4": "Pan"},
                                },
                            },
                            {"type": "search", "timestamp": T0 + 2, "siteSearchKeyword": "pan"},
                        ],
                    },
                    {
                        "idVisit": "2",
                        "visitorId": "w",
                        "userId": "u",
                        "deviceType": "Desktop",
                        "actionDetails": [
                            {"type": kind, "timestamp": T0 + 3, "itemDetails": [{"itemSKU": "a", "quantity": "2"}]}
                            for kind in ("ecommerceAbandonedCart", "ecommerceOrder")
                        ],
                    },
                ]
            )
        },
        [("cart", "u", "a", 2.0), ("purchase", "u", "a", 2.0), ("view", "v", "a", None), ("view", "v", "b", None)],
        {"a": {"title": "Pot", "price": 5.5, "category": "Cook > Pots"}, "b": {"title": "Pan"}},
        more={"view": {"device": "mobile", "session_id": "1"}, "purchase": {"device": "desktop"}},
        refused={WHERE: 1},
    ),
    "a configurable product of Magento is bought by its child, a bundle by an SKU of its own": Export(
        "magento2",
        {
            "products.csv": "sku,store_view_code,attribute_set_code,product_type,categories,name,visibility,price,"
            "additional_attributes,configurable_variations\n"
            'tee,,Default,configurable,"Shop/Women,Shop/Women/Tees, tops",Tee,"Katalog, Suche",,'
            '"fit=Slim|Wide,note=soft, light","sku=tee-s,size=S|sku=tee-m,size=M"\n'
            "tee,de,,,,Hemd,,,,\n"
            "tee-s,,Default,simple,Shop/Women,Tee S,Nicht einzeln sichtbar,20.0000,size=S,\n"
            "tee-m,,Default,simple,Shop/Women,Tee M,Nicht einzeln sichtbar,19.0000,size=M,\n"
            'box,,Default,bundle,Shop,Box,"Katalog, Suche",30.0000,,\n',
            "orders.csv": "entity_id,state,status,customer_id,customer_email,increment_id,created_at\n"
            f"1,complete,complete,NULL,guest@x.example,01,{DAY} 10:00:00\n"
            f"2,canceled,canceled,9,c@x.example,02,{DAY} 10:00:00\n",
            "lines.csv": "item_id,order_id,parent_item_id,product_type,sku,name,qty_ordered,qty_canceled,qty_refunded\n"
            "11,1,NULL,configurable,tee-s,Tee,2.0000,0,0\n12,1,11,simple,tee-s,Tee S,2.0000,0,0\n"
            "13,1,NULL,bundle,box-tee-s,Box,1.0000,0,0\n14,1,NULL,simple,gone,Old lamp,1.0000,0,0\n"
            "15,1,NULL,simple,box,Box,1.0000,0.0000,1.0000\n16,2,NULL,simple,box,Box,1.0000,0,0\n",
        },
        [
            ("purchase", "guest@x.example", "box", 1.0),
            ("purchase", "guest@x.example", "gone", 1.0),
            ("purchase", "guest@x.example", "tee", 2.0),
        ],
        {
            "tee": {"title": "Tee", "price": 19.0, "category": "Women > Tees, tops", "fit": ["Slim", "Wide"]}
            | {"note": "soft, light"},
            "box": {"category": None, "price": 30.0},
            "gone": {"title": "Old lamp"},
        },
        refused={WHERE: 3},
        absent=("tee-s", "tee-m"),
    ),
    "the products of a BigCommerce order stand in one cell, with bars and commas in their names": Export(
        "bigcommerce",
        {
            "products.csv": "Item Type,Product ID,Product Name,Product Code/SKU,Brand Name,Product Description,Price,"
            'Category\nProduct,7,"Pot, big",POT,Kit,<p>Iron</p>,"1,250.00",Sale;Cook/Pots\n  SKU,99,,POT-R,,,,\n',
            "orders.csv": "Order ID,Customer ID,Customer Email,Order Date,Order Status,Product Details\n"
            f'1,5,u@x.example,{DAY},Shipped,"Product ID: 7, Product Qty: 2, Product SKU: POT-R, Product Name: Pot, big,'
            " Product Weight: 1, Product Variation Details: , Product Unit Price: $1,250.00, Product Total Price: "
            '$2,500.00 | Product ID: 8, Product Qty: 1, Product SKU: , Product Name: Old | Pan"\n'
            f'2,0,,{DAY},Refunded,"Product ID: 7, Product Qty: 1, Product SKU: , Product Name: Pot"\n',
        },
        [("purchase", "u@x.example", "7", 2.0), ("purchase", "u@x.example", "8", 1.0)],
        {
            "7": {"title": "Pot, big", "price": 1250.0, "brand": "Kit", "category": "Cook > Pots"}
            | {"categories": ["Sale", "Cook > Pots"], "description": "Iron"},
            "8": {"title": "Old | Pan"},
        },
        refused={WHERE: 2},
        absent=("99",),
    ),
    "a session of Diginetica stands for a shopper without being taken for the user of its number": Export(
        "diginetica",
        {
            "views.csv": f"sessionId;userId;itemId;timeframe;eventdate\n1;NA;a;1500;{DAY}\n"
            f"2;1;a;0;{DAY}\n3;NA;a;0;{DAY}\n",
            "buys.csv": f"sessionId;userId;timeframe;eventdate;ordernumber;itemId\n2;1;60000;{DAY};5;a\n",
            "queries.csv": "queryId;sessionId;userId;timeframe;duration;eventdate;searchstring.tokens;"
            "categoryId;items;is.test\n"
            f"8;2;1;0;1;{DAY};16,24;0;b,a;FALSE\n9;2;1;0;1;{DAY};;0;c;TRUE\n",
            "clicks.csv": "queryId;timeframe;itemId\n8;1000;a\n",
            "products.csv": "itemId;pricelog2;product.name.tokens\na;3;5,6\n",
            "categories.csv": "itemId;categoryId\na;77\n",
        },
        [
            ("click", "1", "a", None),
            ("impression", "1", "a", None),
            ("impression", "1", "b", None),
            ("purchase", "1", "a", None),
            ("view", "1", "a", None),
            ("view", "3", "a", None),
            ("view", "session 1", "a", None),
        ],
        {"a": {"price": 8.0, "category": "77", "name_tokens": ["5", "6"]}},  # 2 ** 3
        more={
            "purchase": {"timestamp": at(f"{DAY}T00:01:00")},
            "click": {"request_id": "8", "timestamp": at(f"{DAY}T00:00:01")},
            "impression": {"request_id": "8", "query": "16,24"},
        },
        absent=("c",),
    ),
    "column names that the trees would take for one get numbers, and n/a is no text among numbers": Export(
        "standard",
        {
            "items.csv": 'item_id,title,Unit Weight,unit_weight,"Net, price",Brand\n'
            "a,Pot,1.2,1200,n/a,Kit\nb,Pan,2,2000,7,Kit\n",
            "events.csv": f"event,user_id,item_id,timestamp\nview,u,a,{T0}\n",
        },
        [("view", "u", "a", None)],
        {"a": {"Unit Weight": 1.2, "unit_weight (2)": 1200.0, "Net, price": None, "Brand_": "Kit"}}
        | {"b": {"Net, price": 7.0}},
    ),
}


@pytest.mark.parametrize("sentence", EXPORTS)
def test_an_export_is_recognised_and_imported(sentence: str, tmp_path: Path) -> None:
    export = EXPORTS[sentence]
    got = import_export(tmp_path, export.files)
    assert got.preset == export.preset
    assert sorted(got.events, key=str) == sorted(export.events, key=str)
    assert {**got.quarantined, **got.left_out} == export.refused
    for kind, columns in export.more.items():
        first = next(row for row in got.rows if row["event"] == kind and all(row[c] is not None for c in columns))
        assert {c: first[c] for c in columns} == columns
    assert not set(export.absent) & set(got.items)
    for found, expected in ((got.items, export.items), (got.users, export.users)):
        for key, columns in expected.items():
            assert {name: found[key][name] for name in columns} == columns

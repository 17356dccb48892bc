"""Presets of public data sets: what is read of each, and what is left out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from offline.ingest.cells import create_macros
from tests.offline.ingest.exports import import_export, lines


def test_olist_orders_are_of_persons_and_reviews_of_the_products_of_an_order(tmp_path: Path) -> None:
    got = import_export(
        tmp_path,
        {
            "customers.csv": "customer_id,customer_unique_id,customer_zip_code_prefix\nk1,ana,01409\nk2,ana,01409\n",
            "orders.csv": "order_id,customer_id,order_status,order_purchase_timestamp\n"
            "o1,k1,delivered,2018-01-02 10:00:00\no2,k2,invoiced,2018-02-02 10:00:00\n"
            "o3,k2,canceled,2018-03-02 10:00:00\n",
            "lines.csv": "order_id,order_item_id,product_id,price\no1,1,lamp,10.0\no1,2,lamp,12.0\no2,1,rug,8.0\n"
            "o3,1,rug,8.0\n",
            "products.csv": "product_id,product_category_name,product_weight_g\nlamp,casa,500.0\nrug,,\n",
            "reviews.csv": "review_id,order_id,review_score,review_creation_date\nr1,o1,4,2018-01-09 00:00:00\n"
            "r2,o9,1,2018-01-09 00:00:00\n",
            "translation.csv": "\ufeffproduct_category_name,product_category_name_english\ncasa,home\n",
        },
    )
    # Two pieces of one product are two lines. An order that is not known has no products.
    assert got.events == [
        ("purchase", "ana", "lamp", None),
        ("purchase", "ana", "lamp", None),
        ("rating", "ana", "lamp", 4.0),
        ("purchase", "ana", "rug", None),
    ]
    assert got.left_out == {"event order canceled": 1}
    assert got.quarantined == {"missing_user": 1}
    # The median of 10 and 12.
    assert (got.items["lamp"]["category"], got.items["lamp"]["price"]) == ("home", 11.0)
    assert got.items["rug"]["category"] is None
    assert got.users["ana"]["customer_zip_code_prefix"] == "01409"


def test_olist_products_without_a_table_have_their_median_price_with_a_decimal_comma(tmp_path: Path) -> None:
    """Both required tables, as a spreadsheet saves them: (1.118,70 + 1.120,70) / 2 = 1119.70."""
    got = import_export(
        tmp_path,
        {
            "pedidos.csv": "\ufefforder_status;order_id;customer_id;order_purchase_timestamp;nota\n"
            "delivered;o1;k1;30/01/2018 10:56;\nCanceled;o2;k2;31/01/2018 10:56;x\nshipped;o3;k2;01/02/2018 10:56;\n",
            "itens.csv": "price;product_id;order_id;order_item_id\n1.118,70;lamp;o1;1\n1.120,70;lamp;o1;2\n"
            "7,50;rug;o2;1\n;mug;o3;1\n",
        },
    )
    assert [(user, item) for _, user, item, _ in got.events] == [("k1", "lamp"), ("k1", "lamp"), ("k2", "mug")]
    assert got.left_out == {"event order canceled": 1}
    assert {item: row["price"] for item, row in got.items.items()} == {"lamp": 1119.7, "mug": None}


AMOUNTS: dict[str, float | None] = {
    "1.118,70": 1118.7,
    "1,299.00": 1299.0,
    "1,299": 1299.0,
    "1.299": 1.299,
    "-3,5": -3.5,
    "0,1234": 0.1234,
}
AMOUNTS |= {"1.000.000,5": 1000000.5, "12": 12.0, "x": None}


def test_sql_of_a_mapping_reads_amounts_with_a_point_or_a_comma() -> None:
    """`amount(x)` takes a comma as decimal unless three digits follow and nothing else tells."""
    sql = duckdb.connect()
    create_macros(sql, [""])
    assert {x: sql.execute("SELECT amount(?)", [x]).fetchall()[0][0] for x in AMOUNTS} == AMOUNTS


def test_instacart_orders_keep_the_days_between_them_and_end_on_one_day(tmp_path: Path) -> None:
    """User 1 orders, 30 days later and 15 days after that: 45 days from the lamp to the rug. User 2 orders once."""
    got = import_export(
        tmp_path,
        {
            "orders.csv": "order_id,user_id,eval_set,order_number,order_dow,order_hour_of_day,days_since_prior_order\n"
            "13,1,train,3,2,10,15.0\n11,1,prior,1,2,08,\n12,1,prior,2,3,09,30.0\n21,2,prior,1,1,23,\n",
            "order_products__prior.csv": "order_id,product_id,add_to_cart_order,reordered\n"
            "11,7,1,0\n12,8,1,0\n21,7,1,0\n",
            "order_products__train.csv": "order_id,product_id,add_to_cart_order,reordered\n13,9,1,0\n",
            "products.csv": "product_id,product_name,aisle_id,department_id\n7,Lamp,1,1\n8,Mug,1,1\n9,Rug,1,1\n",
            "aisles.csv": "aisle_id,aisle\n1,things\n",
            "departments.csv": "department_id,department\n1,home\n",
        },
    )
    at = {(row["user_id"], row["item_id"]): row["timestamp"] for row in got.rows}
    assert at["1", "9"] == datetime(2020, 1, 1, 10, tzinfo=UTC)
    assert at["2", "7"] == datetime(2020, 1, 1, 23, tzinfo=UTC)
    # 08:00 of the first day to 10:00 of the last.
    assert at["1", "9"] - at["1", "7"] == timedelta(days=45, hours=2)
    assert at["1", "8"] - at["1", "7"] == timedelta(days=30, hours=1)
    assert got.items["7"]["category"] == "home > things"


def test_yelp_lists_and_nulls_cost_no_business_and_tips_are_counted_as_left_out(tmp_path: Path) -> None:
    place = {"name": "Kiln", "stars": 4.0, "postal_code": "0810", "hours": {"Monday": "8:0-9:0"}}
    who = {"user_id": "u1", "business_id": "b1"}
    got = import_export(
        tmp_path,
        {
            "business.json": lines(
                {**place, "business_id": "b1", "attributes": {"WiFi": "u'no'"}, "categories": "Food, Tea Rooms"},
                {**place, "business_id": "b2", "attributes": None, "categories": None},
            ),
            "review.json": lines({"review_id": "r1", **who, "stars": 5.0, "date": "2021-07-07 22:09:11"}),
            "user.json": lines({"user_id": "u1", "name": "Ann", "review_count": 7, "yelping_since": "2010-01-25"}),
            "tip.json": lines({**who, "text": "x", "date": "2021-07-08 10:00:00", "compliment_count": 0}),
            "checkin.json": lines({"business_id": "b1", "date": "2021-03-13 21:10:56, 2021-06-28 18:02:01"}),
        },
    )
    assert got.events == [("rating", "u1", "b1", 5.0)]
    assert got.left_out == {"event tip": 1, "event check-in": 1}
    assert (got.items["b1"]["category"], got.items["b1"]["categories"]) == ("Food", ["Food", "Tea Rooms"])
    assert got.items["b1"]["postal_code"] == "0810"
    assert got.items["b2"]["category"] is None
    assert got.users["u1"]["review_count"] == 7
    assert "name" not in got.users["u1"]


def test_yoochoose_zeros_are_unknown_and_the_mixed_column_is_a_category_or_a_brand(tmp_path: Path) -> None:
    got = import_export(
        tmp_path,
        {
            "clicks.dat": "1,2014-04-07T10:51:09.277Z,101,0\n1,2014-04-07T10:52:09.277Z,102,S\n"
            "1,2014-04-07T10:53:09.277Z,103,12\n2,2014-04-07T10:54:09.277Z,104,2089091\n",
            "buys.dat": "1,2014-04-07T11:05:11.138Z,103,523,2\n1,2014-04-07T11:05:11.138Z,102,0,0\n",
        },
    )
    assert got.events[-2:] == [("purchase", "1", "102", None), ("purchase", "1", "103", 2.0)]
    assert [got.items[i]["category"] for i in ("101", "102", "103", "104")] == [None, None, "12", None]
    assert (got.items["104"]["brand"], got.items["103"]["price"], got.items["102"]["price"]) == ("2089091", 523.0, None)


def test_taobao_moments_outside_the_log_are_refused_and_favourites_left_out(tmp_path: Path) -> None:
    rows = ["1,11,7,pv,1511544070", "1,11,7,buy,1511544080", "1,12,7,fav,1511544090", "2,13,7,cart,-1511544070"]
    got = import_export(tmp_path, {"b.csv": "\n".join([*rows, "2,13,7,pv,2122867355"]) + "\n"})
    assert got.events == [("view", "1", "11", None), ("purchase", "1", "11", None)]
    assert got.left_out == {"event fav": 1}
    assert got.quarantined == {"timestamp_too_old": 1, "future_event": 1}
    assert {i: row["category"] for i, row in got.items.items()} == {"11": "7"}


def test_recbole_headers_tell_types_and_quotes_are_letters(tmp_path: Path) -> None:
    got = import_export(
        tmp_path,
        {
            "x.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\t007\t4.0\t1769763600.0\n"
            "u1\t008\t\t1769763700.0\n",
            "x.item": "item_id:token\tmovie_title:token\tclass:token_seq\tyear:token\tsize:float\n"
            '007\tThe "last" one\tDrama Comedy\t1999\t2.5\n008\tOther\t\t2001\t\n',
            "x.user": "user_id:token\tage:float\tzip:token\nu1\t24.0\t00123\n",
        },
    )
    # A row without stars is only an interaction.
    assert got.events == [("rating", "u1", "007", 4.0), ("view", "u1", "008", None)]
    item = got.items["007"]
    assert (item["title"], item["class"], item["year"], item["size"]) == (
        'The "last" one',
        ["Drama", "Comedy"],
        "1999",
        2.5,
    )
    assert (got.users["u1"]["age"], got.users["u1"]["zip"]) == (24.0, "00123")


def test_retailrocket_properties_are_the_last_told_and_categories_have_their_path(tmp_path: Path) -> None:
    got = import_export(
        tmp_path,
        {
            "events.csv": "timestamp,visitorid,event,itemid,transactionid\n1433221332000,5,view,355,\n"
            "1433221332000,5,view,355,\n"
            "1433221333000,5,transaction,355,9\n",
            "part1.csv": "timestamp,itemid,property,value\n2,355,790,n12600.000\n3,355,790,n-5.500\n1,355,790,n1.000\n",
            "part2.csv": "timestamp,itemid,property,value\n2,355,categoryid,8\n2,355,11,n1.000 77\n",
            "tree.csv": "categoryid,parentid\n8,4\n4,1\n1,\n",
        },
    )
    # Equal rows are one event.
    assert got.events == [("view", "5", "355", None), ("purchase", "5", "355", None)]
    item = got.items["355"]
    assert (item["category"], item["790"], item["11"]) == ("1 > 4 > 8", -5.5, "n1.000 77")


def test_steam_lines_are_python_literals_and_a_review_needs_a_year(tmp_path: Path) -> None:
    posted = "'funny': '', 'posted': 'Posted {day}.', 'item_id': '{item}', 'recommend': {good}"
    first = posted.format(day="November 5, 2025", item=1, good=True)
    second = posted.format(day="May 3", item=1, good=True)
    third = posted.format(day="December 31, 2025", item=2, good=False)
    got = import_export(
        tmp_path,
        {
            "users.json": f"{{'user_id': 'a', 'reviews': [{{{first}}}, {{{second}}}, {{{third}}}]}}\n"
            f"{{'user_id': 'b', 'reviews': []}}\n",
            "games.json": "{u'id': u'1', u'app_name': u\"Keeper's\", u'genres': [u'RPG', u'Indie'], u'price': "
            "u'Free', u'release_date': u'2019'}\n"
            "{u'id': u'2', u'app_name': u'Tide', u'price': 4.99, u'release_date': u'Soon..', u'developer': None}\n",
        },
    )
    assert got.events == [("rating", "a", "1", 1.0), ("rating", "a", "2", 0.0)]
    assert got.quarantined == {"bad_timestamp": 1}
    assert got.left_out == {"row excluded by `where`": 1}
    assert (got.items["1"]["title"], got.items["1"]["category"], got.items["1"]["price"]) == ("Keeper's", "RPG", None)
    assert got.items["1"]["available_from"] == datetime(2019, 1, 1, tzinfo=UTC)
    assert (got.items["2"]["available_from"], got.items["2"]["price"]) == (None, 4.99)

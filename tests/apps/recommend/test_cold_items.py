"""Cold items: recommended beside those of the release, through what they have in common, until the next release."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from apps.adapters.listed_items import NewItems
from apps.ports import ListedItem
from apps.recommend.cold_items import MAX_COLD_ITEMS
from features.contract.columns import SHOP_EVENTS_SCHEMA
from infra.settings import Settings
from streaming.tables import SHOP_EVENTS, write_table
from tests.apps.recommend.fakes import NOW
from tests.apps.recommend.test_service import Shop

TEAPOT = ListedItem("teapot", "Green Pot", 4.0, "kitchen")
SOFA = ListedItem("sofa", "Sofa", 55.0, "living")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    list_items(shop, TEAPOT, SOFA)
    return shop


def list_items(shop: Shop, *items: ListedItem) -> None:
    assert shop.serving is not None
    shop.serving.item_stats.refresh(shop.reader, now=NOW, new_items=lambda moment: list(items))


def test_a_new_item_is_shown_with_its_own_price_and_reason(shop: Shop) -> None:
    teapot = next(item for item in shop.ask(n=20).items if item.item_id == "teapot")
    assert (teapot.source, teapot.reasons[0].code) == ("new", "NEW_ITEM")
    assert (teapot.title, teapot.price, teapot.category) == ("Green Pot", 4.0, "kitchen")
    shown = shop.impressions()[0]["items"]
    assert {"teapot", "sofa"} <= {item["item_id"] for item in shown}


def test_it_ranks_as_the_item_most_similar_to_it(shop: Shop) -> None:
    scores = {item.item_id: item.score for item in shop.ask(user_id="ann", n=20).items}
    assert scores["teapot"] == 2.0  # the fake ranker scores by index, and the pot has 2
    assert scores["sofa"] in (3.0, 4.0, 5.0)


def test_filters_exclusions_and_rules_apply_to_it(shop: Shop) -> None:
    assert shop.items(filter="price == 55") == ["sofa"]
    assert "sofa" not in shop.items(exclude=["sofa"], n=20)
    shop.rules = shop.rules.model_validate({"rules": [{"kind": "hide", "when": "title contains 'sofa'"}]})
    assert "teapot" in shop.items(n=20)
    assert "sofa" not in shop.items(n=20)
    shop.rules = shop.rules.model_validate({"sources": {"new": 0}})
    assert not {"teapot", "sofa"} & set(shop.items(n=20))


def test_it_is_dropped_when_the_release_knows_it_and_only_the_latest_are_kept(shop: Shop) -> None:
    list_items(shop, replace(TEAPOT, item_id="tea"), SOFA)
    assert shop.items(n=20).count("tea") <= 1
    list_items(shop, *(replace(TEAPOT, item_id=f"new-{number}") for number in range(MAX_COLD_ITEMS + 5)))
    assert shop.serving is not None
    kept = [item.item_id for item in shop.serving.item_stats.cold_items.items]
    assert (len(kept), kept[0], kept[-1]) == (MAX_COLD_ITEMS, "new-5", f"new-{MAX_COLD_ITEMS + 4}")


def test_a_list_that_cannot_be_read_leaves_the_cold_items_as_they_are(shop: Shop) -> None:
    assert shop.serving is not None

    def fails(moment: int) -> list[ListedItem]:
        raise OSError("the table is away")

    shop.serving.item_stats.refresh(shop.reader, now=NOW, new_items=fails)
    assert "teapot" in shop.items(n=20)
    assert not shop.ask().degraded


def test_listings_are_read_from_the_feature_jobs_table_and_the_last_of_an_item_holds(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    listings = NewItems(settings)
    assert listings.since(0) == []

    def listed(item: str, moment: int, title: str) -> dict[str, object]:
        empty: dict[str, object] = dict.fromkeys(SHOP_EVENTS_SCHEMA.names)
        return empty | {
            "event_id": f"{item}{moment}",
            "type": "item",
            "event_time": moment,
            "item_id": item,
            "title": title,
        }

    def write(name: str, *rows: dict[str, object]) -> None:
        write_table(settings.offline_dir / SHOP_EVENTS, name, pa.Table.from_pylist(list(rows), SHOP_EVENTS_SCHEMA))

    write("batch-0", listed("a", 5, "old"), listed("b", 20, "B"), listed("a", 30, "A") | {"price": 2.5})
    write("batch-1", listed("c", 25, "C") | {"type": "view"})
    assert listings.since(10) == [ListedItem("b", "B", 0.0, ""), ListedItem("a", "A", 2.5, "")]
    write("batch-2", listed("d", 40, "D"))
    assert [item.item_id for item in listings.since(10)] == ["b", "a", "d"]
    assert [item.item_id for item in listings.since(35)] == ["d"]


def test_its_vector_is_the_normalised_mean_of_similar_items(shop: Shop) -> None:
    assert shop.serving is not None
    vectors = shop.serving.item_stats.cold_items.vectors
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)

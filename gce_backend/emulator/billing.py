"""The Cloud Billing Catalog as a price table reads it: the SKUs of Compute Engine, in pages.

A selection in the API's shapes. Prices of cores and memory are such that the machine types cost
what Google's price list of 2026 says; every other method of the API is answered 501.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from aiohttp import web

from .errors import ApiError, invalid, not_emulated

SERVICE = "services/6F81-5844-456A"
_PREFIX = "/v1/services"
_MOST = 5000
_REGIONS = {"us-central1": "Iowa", "europe-west1": "Belgium", "europe-west4": "Netherlands"}

#: (description, resource group, unit) -> region -> (on demand, spot), USD.
_PRICES: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {
    ("N1 Predefined Instance Core", "N1Standard", "h"): {
        "us-central1": (0.031611, 0.011180),
        "europe-west1": (0.034773, 0.014510),
        "europe-west4": (0.034806, 0.020240),
    },
    ("N1 Predefined Instance Ram", "N1Standard", "GiBy.h"): {
        "us-central1": (0.004237, 0.001498),
        "europe-west1": (0.004661, 0.001945),
        "europe-west4": (0.004665, 0.002712),
    },
    ("E2 Instance Core", "CPU", "h"): {
        "us-central1": (0.021812, 0.013087),
        "europe-west1": (0.023993, 0.011617),
        "europe-west4": (0.024014, 0.011467),
    },
    ("E2 Instance Ram", "RAM", "GiBy.h"): {
        "us-central1": (0.002924, 0.001754),
        "europe-west1": (0.003216, 0.001558),
        "europe-west4": (0.003219, 0.001537),
    },
    ("Nvidia Tesla T4 GPU", "GPU", "h"): dict.fromkeys(_REGIONS, (0.35, 0.14)),
    ("E2 Custom Instance Core", "CPU", "h"): {"europe-west1": (0.025, 0.012)},
}


def serve(request: web.BaseRequest) -> web.Response | None:
    """None where the request is none of this API's."""
    if not request.path.startswith((_PREFIX, "/v1/billingAccounts")):
        return None
    try:
        if request.method != "GET" or request.path != f"/v1/{SERVICE}/skus":
            raise not_emulated(f"cloudbilling {request.method} {request.path}")
        return web.json_response(_page(request.query))
    except ApiError as error:
        return web.json_response(error.body(), status=error.code)


def _page(query: Any) -> dict[str, Any]:
    try:
        size = min(int(query.get("pageSize") or _MOST), _MOST)
        first = int(query.get("pageToken") or 0)
    except ValueError:
        raise invalid("Request contains an invalid argument.") from None
    rows = skus()
    more = first + size < len(rows)
    return {
        "skus": rows[first : first + size],
        "nextPageToken": str(first + size) if more else "",
    }


@cache
def skus() -> list[dict[str, Any]]:
    return [
        _sku(what, group, unit, region, amount, spot=spot)
        for (what, group, unit), regions in _PRICES.items()
        for region, pair in regions.items()
        for spot, amount in zip((False, True), pair, strict=True)
    ]


def _sku(
    what: str, group: str, unit: str, region: str, amount: float, *, spot: bool
) -> dict[str, Any]:
    if spot and group == "GPU":
        what = f"{what} attached to Spot Preemptible VMs"
    elif spot:
        what = f"Spot Preemptible {what}"
    description = f"{what} running in {_REGIONS[region]}"
    digest = hashlib.sha256(description.encode()).hexdigest().upper()
    identifier = f"{digest[:4]}-{digest[4:8]}-{digest[8:12]}"
    nanos = round(amount * 1e9)
    price = {"currencyCode": "USD", "units": str(nanos // 10**9), "nanos": nanos % 10**9}
    return {
        "name": f"{SERVICE}/skus/{identifier}",
        "skuId": identifier,
        "description": description,
        "category": {
            "serviceDisplayName": "Compute Engine",
            "resourceFamily": "Compute",
            "resourceGroup": group,
            "usageType": "Preemptible" if spot else "OnDemand",
        },
        "serviceRegions": [region],
        "pricingInfo": [
            {
                "summary": "",
                "pricingExpression": {
                    "usageUnit": unit,
                    "displayQuantity": 1,
                    "tieredRates": [{"startUsageAmount": 0, "unitPrice": price}],
                    "usageUnitDescription": "hour" if unit == "h" else "gibibyte hour",
                    "baseUnit": "s" if unit == "h" else "By.s",
                },
                "currencyConversionRate": 1,
                "effectiveTime": "2026-11-01T00:00:00Z",
            }
        ],
        "serviceProviderName": "Google",
        "geoTaxonomy": {"type": "REGIONAL", "regions": [region]},
    }

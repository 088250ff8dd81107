"""The body of an insert: what it must hold, what is refused, and what its references mean."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from . import catalog, schema
from .errors import invalid, invalid_field, required_field
from .images import Image, resolve
from .names import check_labels, check_metadata, check_name, last, tail, url

Body = dict[str, Any]

DEFAULT_ACCOUNT = "123456789012-compute@developer.gserviceaccount.com"
_SCOPE_ROOT = "https://www.googleapis.com/auth/"
_MIN_RUN_SECONDS, _MAX_RUN_SECONDS = 30, 120 * 24 * 3600  # Google, "Limit the run time of a VM"


def checked(
    body: object, project: str, zone: str, *, legacy_images: bool, now: float
) -> tuple[Body, Image]:
    """The body with references resolved, and the boot disk's image.

    Args:
        now: Unix seconds by the emulator's clock.

    Raises:
        ApiError: 400, with the field's name and the wording of the API where it is known.
    """
    given = schema.check("Instance", body)
    if "name" not in given:
        raise required_field("resource.name")
    check_name("resource.name", given["name"])
    machine = _machine_type(given, zone)
    _check_accelerators(given, machine, zone)
    _check_scheduling(given, machine, now)
    check_labels(given.get("labels", {}))
    check_metadata(given.get("metadata", {}).get("items", []))
    for tag in given.get("tags", {}).get("items", []):
        check_name("resource.tags.items", tag)
    disks, image = _disks(given, project, zone, machine, legacy_images=legacy_images)
    accelerators = [
        {**entry, "acceleratorType": url(f"projects/{project}/{_zonal(entry, zone)}")}
        for entry in given.get("guestAccelerators", [])
    ]
    return {
        **given,
        "machineType": url(f"projects/{project}/zones/{zone}/machineTypes/{machine}"),
        "disks": disks,
        "networkInterfaces": _networks(given, project, zone),
        "serviceAccounts": _accounts(given),
        **({"guestAccelerators": accelerators} if accelerators else {}),
    }, image


def _zonal(entry: Body, zone: str) -> str:
    return f"zones/{zone}/acceleratorTypes/{last(entry['acceleratorType'])}"


def _machine_type(body: Body, zone: str) -> str:
    reference = body.get("machineType")
    if not reference:
        raise required_field("resource.machineType")
    name = last(reference)
    parts = tail(reference).split("/")
    if "zones" not in parts or "machineTypes" not in parts:
        raise invalid_field("resource.machineType", reference, "The URL is malformed.")
    named_zone = parts[parts.index("zones") + 1]
    if named_zone != zone or catalog.machine_type(zone, name) is None:
        raise invalid_field(
            "resource.machineType",
            reference,
            f"Machine type with name '{name}' does not exist in zone '{zone}'.",
        )
    return name


def _check_accelerators(body: Body, machine: str, zone: str) -> None:
    for number, entry in enumerate(body.get("guestAccelerators", [])):
        field = f"resource.guestAccelerators[{number}].acceleratorType"
        reference = entry.get("acceleratorType")
        if not reference:
            raise required_field(field)
        row = catalog.accelerator_type(zone, last(reference))
        if row is None:
            raise invalid_field(
                field,
                reference,
                f"Accelerator type with name '{last(reference)}' does not exist in zone '{zone}'.",
            )
        count = entry.get("acceleratorCount", 0)
        if not 1 <= count <= row["maximum"]:
            raise invalid_field(
                field.replace("Type", "Count"), count, f"Must be 1 to {row['maximum']}."
            )
        built_in = catalog.table()["machineTypes"][machine].get("accelerators", [])
        if not machine.startswith("n1-") and last(reference) not in [
            card["guestAcceleratorType"] for card in built_in
        ]:
            raise invalid(
                f"[{machine}, {last(reference)}] features are not compatible for creating instance."
            )


def _check_scheduling(body: Body, machine: str, now: float) -> None:
    scheduling = body.get("scheduling", {})
    spot = scheduling.get("provisioningModel") == "SPOT" or scheduling.get("preemptible", False)
    maintenance = scheduling.get("onHostMaintenance", "TERMINATE" if spot else "MIGRATE")
    if spot and (maintenance != "TERMINATE" or scheduling.get("automaticRestart", False)):
        raise invalid(
            "Scheduling must have preemptible be false when AutomaticRestart is true or "
            "OnHostMaintenance is MIGRATE."
        )
    row = catalog.table()["machineTypes"][machine]
    if (body.get("guestAccelerators") or row.get("accelerators")) and maintenance != "TERMINATE":
        raise invalid("Instances with guest accelerators do not support live migration.")
    if moment := scheduling.get("terminationTime"):
        _check_termination_time(moment, now)
    _check_run_time(scheduling, spot=spot)


def _check_termination_time(moment: str, now: float) -> None:
    field = "resource.scheduling.terminationTime"
    try:
        when = datetime.fromisoformat(moment)
    except ValueError as error:
        raise invalid_field(field, moment, "Must be in RFC3339 format.") from error
    if when.tzinfo is None:
        raise invalid_field(field, moment, "Must be in RFC3339 format.")
    if when.timestamp() <= now:
        raise invalid_field(field, moment, "Must be in the future.")


def _check_run_time(scheduling: Body, *, spot: bool) -> None:
    duration = scheduling.get("maxRunDuration")
    action = scheduling.get("instanceTerminationAction")
    if duration is not None:
        seconds = duration.get("seconds", "0")
        if not _MIN_RUN_SECONDS <= int(seconds) <= _MAX_RUN_SECONDS:
            raise invalid_field(
                "resource.scheduling.maxRunDuration.seconds",
                seconds,
                f"Must be between {_MIN_RUN_SECONDS} and {_MAX_RUN_SECONDS}.",
            )
        if action not in ("STOP", "DELETE"):
            raise required_field("resource.scheduling.instanceTerminationAction")
    elif action and not spot and "terminationTime" not in scheduling:
        raise invalid(
            "You cannot specify a termination action for a VM instance that has the standard "
            "provisioning model (default) and no limit of its run time."
        )


def _disks(
    body: Body, project: str, zone: str, machine: str, *, legacy_images: bool
) -> tuple[list[Body], Image]:
    if not body.get("disks"):
        raise invalid_field("resource.disks", "", "No disks are specified.")
    shown, boot_image = [], None
    for number, disk in enumerate(body["disks"]):
        field = f"resource.disks[{number}]"
        parameters = disk.get("initializeParams")
        if parameters is None:
            raise required_field(f"{field}.initializeParams")
        image = _image(parameters, field, legacy_images=legacy_images)
        if disk.get("boot"):
            boot_image = image
        name = parameters.get("diskName") or (
            body["name"] if disk.get("boot") else f"{body['name']}-{number}"
        )
        size = _size(parameters, image, field)
        kind = _disk_type(parameters, zone, machine, field)
        shown.append(
            {
                **{key: value for key, value in disk.items() if key != "initializeParams"},
                "kind": "compute#attachedDisk",
                "type": disk.get("type", "PERSISTENT"),
                "mode": disk.get("mode", "READ_WRITE"),
                "interface": disk.get("interface", "SCSI"),
                "boot": disk.get("boot", False),
                "autoDelete": disk.get("autoDelete", False),
                "deviceName": disk.get("deviceName", f"persistent-disk-{number}"),
                "index": number,
                "diskSizeGb": str(size),
                "source": url(f"projects/{project}/zones/{zone}/disks/{name}"),
                "initializeParams": {**parameters, "diskType": kind, "diskName": name},
                **({"licenses": image.resource()["licenses"]} if image else {}),
            }
        )
    if boot_image is None:
        raise invalid("Boot disk must be specified with an image.")
    return shown, boot_image


def _image(parameters: Body, field: str, *, legacy_images: bool) -> Image | None:
    reference = parameters.get("sourceImage")
    if not reference:
        return None
    image = resolve(reference, legacy=legacy_images)
    if image is None:
        raise invalid_field(
            f"{field}.initializeParams.sourceImage",
            reference,
            "The referenced image resource cannot be found.",
        )
    return image


def _size(parameters: Body, image: Image | None, field: str) -> int:
    smallest = image.disk_size_gb if image else 10
    size = int(parameters.get("diskSizeGb", smallest))
    if size < smallest:
        raise invalid_field(
            f"{field}.initializeParams.diskSizeGb",
            size,
            f"Requested disk size cannot be smaller than the image size ({smallest} GB)",
        )
    return size


def _disk_type(parameters: Body, zone: str, machine: str, field: str) -> str:
    reference = parameters.get("diskType")
    allowed = catalog.family(machine)["disks"]
    if reference is None:
        return "pd-standard" if "pd-standard" in allowed else str(allowed[0])
    name = last(reference)
    if "diskTypes" not in reference or catalog.disk_type(zone, name) is None:
        raise invalid_field(
            f"{field}.initializeParams.diskType",
            reference,
            "The referenced disk type resource cannot be found.",
        )
    if name not in allowed:
        raise invalid(
            f"[{name}] features are not compatible for creating instance: {machine} takes "
            f"{', '.join(allowed)}."
        )
    return name


def _networks(body: Body, project: str, zone: str) -> list[Body]:
    if not body.get("networkInterfaces"):
        raise invalid_field(
            "resource.networkInterfaces", "", "At least one network interface is required."
        )
    region = catalog.zones()[zone]
    shown = []
    for given in body["networkInterfaces"]:
        network = last(given.get("network", "default"))
        subnetwork = last(given.get("subnetwork", network))
        shown.append(
            {
                **given,
                "network": url(f"projects/{project}/global/networks/{network}"),
                "subnetwork": url(f"projects/{project}/regions/{region}/subnetworks/{subnetwork}"),
            }
        )
    return shown


def _accounts(body: Body) -> list[Body]:
    shown = []
    for number, account in enumerate(body.get("serviceAccounts", [])):
        for scope in account.get("scopes", []):
            if not scope.startswith(_SCOPE_ROOT):
                raise invalid_field(
                    f"resource.serviceAccounts[{number}].scopes", scope, "Invalid scope."
                )
        email = account.get("email", "default")
        shown.append({**account, "email": DEFAULT_ACCOUNT if email == "default" else email})
    return shown

"""Commands for the services of this machine, and for a look at all of them."""

from __future__ import annotations

import dataclasses
from typing import Final

import click

from shared.cli.base import connected, json_option, output_of, private_files, settings_in_force

_SERVICES: Final = click.Choice(["trainer", "inference", "dashboard"])


@click.command()
@click.option("--only", type=_SERVICES, multiple=True, help="Start this service only; may be given again.")
@click.pass_context
def up(ctx: click.Context, only: tuple[str, ...]) -> None:
    """Start all services on this machine; Ctrl-C drains them.

    A service that dies is restarted. One that cannot do what a setting says ends them all, with exit code 2.
    """
    from shared.cli.service_urls import SERVICES, choose_ports, serve, service_children, service_urls  # noqa: PLC0415

    output = output_of(ctx)
    settings = settings_in_force()
    ports = choose_ports(settings, [service for service in SERVICES if service in (only or SERVICES)])
    for what, where in service_urls(settings, ports):
        output.line(f"{what:<18} {where}")
    if refused := serve(service_children(ports), output.remark):
        output.error(f"the {refused} refused to start with these settings; why stands above, in its own words")
        ctx.exit(2)


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Check this installation, and say what to do about each problem.

    Exit code 1 means that there is a problem. A warning is none.
    """
    from shared.cli.doctor import Finding, examine  # noqa: PLC0415

    output = output_of(ctx)
    styles = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    findings: list[Finding] = []
    settings = settings_in_force()
    with private_files(settings):
        for finding in examine(settings):
            findings.append(finding)
            if not output.as_json:
                output.line(f"{finding.state:<8} {finding.check}: {finding.found}", styles[finding.state])
                if finding.advice:
                    output.line(f"{'':<8} → {finding.advice}")
    if output.as_json:
        output.document([dataclasses.asdict(finding) for finding in findings])
    if any(finding.state == "problem" for finding in findings):
        ctx.exit(1)


@click.command()
@json_option
@click.pass_context
def status(ctx: click.Context) -> None:
    """Show the services, the queues, the model in use and the training runs."""
    from shared.cli.show import show_status  # noqa: PLC0415

    with connected() as client:
        show_status(output_of(ctx), client)

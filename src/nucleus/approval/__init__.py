"""Approvals, without their store: tokens (`token`), `rules`, and what a person is shown (`display`)."""

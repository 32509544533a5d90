"""What Django starts with a project: settings are refused here, and logins are told from here on."""

from django.apps import AppConfig
from django.core.signals import setting_changed

__all__ = ["LapseConfig"]


class LapseConfig(AppConfig):  # type: ignore[misc]  # Django ships no types
    name = "lapse.consumers.frameworks.django"
    label = "lapse"
    verbose_name = "Lapse"

    def ready(self) -> None:
        from django.contrib.auth.signals import user_logged_in, user_logged_out

        from lapse.consumers.frameworks.django.settings import enforcement, forget
        from lapse.consumers.frameworks.django.signals import logged_in, logged_out

        enforcement()  # nothing is started: a process that forks may load the project before
        user_logged_in.connect(logged_in, dispatch_uid="lapse.logged_in")
        user_logged_out.connect(logged_out, dispatch_uid="lapse.logged_out")
        setting_changed.connect(forget, dispatch_uid="lapse.settings")

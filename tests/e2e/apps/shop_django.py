from __future__ import annotations

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from djangoapi_guard import SecurityConfig
from shop import CONFIG, home, loaded, report

from guard_agent import guard_agent
from guard_agent.integrations.asgi import LifespanMiddleware

settings.configure(
    SECRET_KEY="e2e",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["djangoapi_guard.middleware.DjangoAPIGuard"],
    GUARD_SECURITY_CONFIG=SecurityConfig(**CONFIG),
)
django.setup()


def index(_: HttpRequest) -> JsonResponse:
    return JsonResponse(home())


def store(_: HttpRequest) -> JsonResponse:
    return JsonResponse(report(stored=guard_agent().flush_to_store()))


urlpatterns = [path("", index), path("store", store)]


def wsgi() -> object:
    application = get_wsgi_application()
    loaded()
    return application


def asgi() -> object:
    application = LifespanMiddleware(get_asgi_application())
    loaded()
    return application

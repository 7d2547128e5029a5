# The daemon and the application's handlers. Your own: `FROM` this image, and copy your modules over /app.
ARG PYTHON=python:3.13-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY daemon daemon
COPY sql sql
# The environment gets no pip: nothing is installed into it later.
RUN python -m venv --without-pip /opt/howdah \
 && python -m pip --python /opt/howdah/bin/python install --only-binary=:all: '.[app]'

FROM ${PYTHON}
LABEL org.opencontainers.image.title="Howdah" \
      org.opencontainers.image.description="A background-job daemon for PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin howdah
COPY --from=build /opt/howdah /opt/howdah
COPY handlers /app/handlers
# The application's own schema: `migrate --app sql`.
COPY sql/app /app/sql
WORKDIR /app
USER 10001:10001
# All addresses: whoever scrapes comes from outside. What is not metrics or health asks for HOWDAH_ADMIN_TOKEN then.
ENV PATH=/opt/howdah/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    HOWDAH_HTTP_HOST=0.0.0.0
EXPOSE 9543
# It drains; give it longer than HOWDAH_DRAIN_TIMEOUT (25 s): `stop --time 45`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["howdah", "healthcheck"]
ENTRYPOINT ["howdah"]
CMD ["run"]

"""The tables, as the newest migration leaves them. Only `storage`, `migrations` and the modules that own rows read this."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

SCHEMA = "0001"
"""The newest Alembic revision; a database that has another one is migrated when it is opened."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)
_LIVE = text("NOT deleted")


def _id() -> Column[str]:
    return Column("id", String(64), primary_key=True)


sequences = Table(
    "sequences",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Integer, nullable=False),
)

conversations = Table(
    "conversations",
    metadata,
    _id(),
    Column("owner", String(64), nullable=False),
    Column("title", Text, nullable=False, default=""),
    Column("locale", String(16), nullable=False, default="en"),
    Column("head", String(64)),  # the newest message of the branch that is shown
    Column("floor", String(64)),  # the plugin whose question waits for an answer
    Column("mode", String(16), nullable=False, default="bot"),  # bot, waiting, human, closed
    Column("person", String(64)),  # who of the team owns it in mode human
    Column("consent_train", Boolean, nullable=False, default=False),
    Column("retention_until", Float),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("deleted", Boolean, nullable=False, default=False),
    Index("ix_conversations_owner_updated", "owner", "deleted", "updated"),
)

messages = Table(
    "messages",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),  # order is by this number, never by a clock
    Column("id", String(64), nullable=False, unique=True),
    Column("conversation", String(64), ForeignKey("conversations.id"), nullable=False),
    Column("parent", String(64)),  # turns are a tree: edit and retry add a branch, nothing is overwritten
    Column("role", String(16), nullable=False),  # user, assistant, agent
    Column("author", String(64), nullable=False),
    Column("text", Text, nullable=False, default=""),
    Column("input", Text),  # exactly what the models saw
    Column("raw_digest", String(64)),  # SHA-256 of the bytes that came in, before normalisation
    Column("state", String(16), nullable=False),  # pending, streaming, done, failed, stopped
    Column("plugin", String(64)),
    Column("options", JSON),
    Column("route", JSON),
    Column("events", JSON),
    Column("timings", JSON),
    Column("knowledge_sequence", Integer),
    Column("threshold", Float),
    Column("locale", String(16)),
    Column("idempotency_key", String(64)),
    Column("lease_holder", String(128)),
    Column("lease_until", Float),
    Column("created", Float, nullable=False),
    UniqueConstraint("conversation", "idempotency_key"),
    Index("ix_messages_conversation", "conversation", "seq"),
    Index("ix_messages_lease", "state", "lease_until"),
)

predictions = Table(
    "predictions",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("message", String(64), ForeignKey("messages.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),  # entities, intent
    Column("model", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("value", JSON, nullable=False),
    Column("created", Float, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("message", String(64), ForeignKey("messages.id"), nullable=False),
    Column("author", String(64), nullable=False),
    Column("value", Integer, nullable=False),  # 1, -1; 0 takes it back
    Column("reason", String(64), nullable=False, default=""),
    Column("comment", Text, nullable=False, default=""),
    Column("created", Float, nullable=False),
    UniqueConstraint("message", "author"),
)

corrections = Table(
    "corrections",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("message", String(64), ForeignKey("messages.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("before", JSON),
    Column("after", JSON, nullable=False),
    Column("author", String(64), nullable=False),
    Column("model", String(64)),
    Column("version", String(64)),
    Column("status", String(16), nullable=False),  # noted, accepted, declined, learned
    Column("created", Float, nullable=False),
)

states = Table(
    "states",
    metadata,
    Column("conversation", String(64), ForeignKey("conversations.id"), primary_key=True),
    Column("plugin", String(64), primary_key=True),
    Column("value", JSON, nullable=False),
)

files = Table(
    "files",
    metadata,
    _id(),
    Column("owner", String(64), nullable=False),
    Column("conversation", String(64), ForeignKey("conversations.id"), index=True),
    Column("name", Text, nullable=False),
    Column("media_type", String(128), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("size", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("created", Float, nullable=False),
)

collections = Table(
    "collections",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("embedder", String(64), nullable=False),  # name, and the digest of its weights: vectors never mix
    Column("embedder_digest", String(64), nullable=False),
    Column("language", String(16), nullable=False, default="en"),
    Column("calibration", JSON),  # weights, threshold, and what they were fitted on; null: the built-in ones
    Column("created", Float, nullable=False),
)

documents = Table(
    "documents",
    metadata,
    _id(),
    Column("collection", String(64), ForeignKey("collections.name"), nullable=False),
    Column("uri", Text, nullable=False),  # unique among the live documents of a collection
    Column("title", Text, nullable=False),
    Column("kind", String(16), nullable=False),  # entries, passages
    Column("language", String(16), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("tags", JSON),
    Column("valid_from", Float),
    Column("valid_until", Float),
    Column("owner", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("deleted", Boolean, nullable=False, default=False),
    Index("uq_documents_live_uri", "collection", "uri", unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE),
)

chunks = Table(
    "chunks",
    metadata,
    Column(
        "row", Integer, primary_key=True, autoincrement=True
    ),  # the id in the vector and full-text indexes, never reused
    Column("key", Text, nullable=False),  # the id people see; unique among the live chunks of a collection
    Column("document", String(64), ForeignKey("documents.id"), nullable=False, index=True),
    Column("collection", String(64), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("kind", String(16), nullable=False),  # entry, passage
    Column("title", Text, nullable=False),  # the question of an entry, the headings above a passage
    Column("text", Text, nullable=False),
    Column("start", Integer, nullable=False, default=0),  # characters of the source
    Column("end", Integer, nullable=False, default=0),
    Column("page", Integer),
    Column("vector", LargeBinary, nullable=False),  # float32, little endian, unit length
    Column("enabled", Boolean, nullable=False, default=True),
    Column("sequence", Integer, nullable=False),
    Column("deleted", Boolean, nullable=False, default=False),  # a tombstone: other processes' indexes must learn of it
    Index("ix_chunks_collection_sequence", "collection", "sequence"),
    Index("uq_chunks_live_key", "collection", "key", unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE),
    sqlite_autoincrement=True,
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    Column("owner", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("state", String(16), nullable=False),  # queued, running, stopping, stopped, failed, done
    Column("payload", JSON, nullable=False),
    Column("progress", JSON),
    Column("result", JSON),
    Column("lease_holder", String(128)),
    Column("lease_until", Float),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Index("ix_jobs_owner", "owner", "updated"),
    Index("ix_jobs_lease", "state", "lease_until"),
)

models = Table(
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),  # embedder, tagger, classifier, generator
    Column("manifest_digest", String(64), nullable=False),  # SHA-256 of manifest.json, which holds those of the files
    Column("card", JSON, nullable=False),
    Column("created", Float, nullable=False),
)

promotions = Table(
    "promotions",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", String(64), nullable=False),
    Column("previous", String(64)),
    Column("author", String(64), nullable=False),
    Column("created", Float, nullable=False),
)

FULL_TEXT = "chunks_text"
"""The full-text table over `chunks`; its DDL is the database's own dialect and stands in the migration."""

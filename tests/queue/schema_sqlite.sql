-- version 0003
CREATE TABLE txmail_attempt (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	delivery BIGINT NOT NULL,
	at BIGINT NOT NULL,
	state VARCHAR(10) NOT NULL,
	code SMALLINT,
	reply TEXT,
	route TEXT,
	process VARCHAR(32)
)
CREATE INDEX ix_txmail_attempt_delivery ON txmail_attempt (delivery)
CREATE TABLE txmail_audit (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	at BIGINT NOT NULL,
	actor TEXT NOT NULL,
	action TEXT NOT NULL,
	subject TEXT NOT NULL,
	detail TEXT NOT NULL
)
CREATE TABLE txmail_batch (
	id BIGINT NOT NULL,
	state VARCHAR(12) NOT NULL,
	process VARCHAR(32),
	created BIGINT NOT NULL,
	changed BIGINT NOT NULL,
	witnesses TEXT NOT NULL,
	reason TEXT,
	CONSTRAINT pk_txmail_batch PRIMARY KEY (id)
)
CREATE INDEX ix_txmail_batch_open ON txmail_batch (state, id) WHERE state IN ('staged', 'sending', 'publishing', 'unknown')
CREATE TABLE txmail_boot (
	id VARCHAR(36) NOT NULL,
	started BIGINT NOT NULL,
	CONSTRAINT pk_txmail_boot PRIMARY KEY (id)
)
CREATE TABLE txmail_control (
	name TEXT NOT NULL,
	value TEXT NOT NULL,
	actor TEXT NOT NULL,
	changed BIGINT NOT NULL,
	CONSTRAINT pk_txmail_control PRIMARY KEY (name)
)
CREATE TABLE txmail_delivery (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	message BIGINT NOT NULL,
	recipient TEXT NOT NULL,
	state VARCHAR(10) NOT NULL,
	priority SMALLINT NOT NULL,
	due BIGINT,
	expires BIGINT,
	attempts SMALLINT NOT NULL,
	begun SMALLINT NOT NULL,
	duplicate SMALLINT NOT NULL,
	process VARCHAR(32),
	token BIGINT,
	lease BIGINT,
	changed BIGINT NOT NULL,
	code SMALLINT,
	reply TEXT,
	fields TEXT,
	route TEXT,
	since BIGINT
)
CREATE INDEX ix_txmail_delivery_attention ON txmail_delivery (state, id) WHERE state IN ('failed', 'in_doubt', 'held')
CREATE INDEX ix_txmail_delivery_bulk ON txmail_delivery (priority, message, due, id) WHERE state = 'ready' AND route IS NULL AND priority = 2
CREATE INDEX ix_txmail_delivery_delayed ON txmail_delivery (since) WHERE state = 'ready' AND since IS NOT NULL
CREATE INDEX ix_txmail_delivery_impossible ON txmail_delivery (id) WHERE (state NOT IN ('staged', 'ready', 'sending', 'sent', 'deferred', 'failed', 'in_doubt', 'held', 'cancelled', 'expired')) OR state IN ('ready', 'sending', 'deferred', 'in_doubt') AND ((priority NOT IN (0, 1, 2)) OR due < 0 OR due > 253402300799999 OR changed < 0 OR changed > 253402300799999) OR state IN ('ready', 'deferred') AND due IS NULL OR state = 'sending' AND (lease IS NULL OR token IS NULL)
CREATE INDEX ix_txmail_delivery_later ON txmail_delivery (due, id) WHERE state IN ('deferred', 'in_doubt') AND due IS NOT NULL
CREATE INDEX ix_txmail_delivery_lease ON txmail_delivery (lease) WHERE state = 'sending'
CREATE INDEX ix_txmail_delivery_message ON txmail_delivery (message)
CREATE INDEX ix_txmail_delivery_parked ON txmail_delivery (route, priority, due, id) WHERE state = 'ready' AND route IS NOT NULL
CREATE INDEX ix_txmail_delivery_ready ON txmail_delivery (priority, due, id) WHERE state = 'ready' AND route IS NULL
CREATE TABLE txmail_idempotency (
	"key" TEXT NOT NULL,
	message BIGINT NOT NULL,
	created BIGINT NOT NULL,
	CONSTRAINT pk_txmail_idempotency PRIMARY KEY ("key")
)
CREATE TABLE txmail_message (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	batch BIGINT NOT NULL,
	kind VARCHAR(5) NOT NULL,
	message_id TEXT NOT NULL,
	sender TEXT NOT NULL,
	created BIGINT NOT NULL,
	idempotency_key TEXT,
	size BIGINT NOT NULL,
	content BLOB NOT NULL,
	digest BLOB,
	not_before BIGINT
)
CREATE INDEX ix_txmail_message_batch ON txmail_message (batch)
CREATE TABLE txmail_operation (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	kind VARCHAR(32) NOT NULL,
	state VARCHAR(16) NOT NULL,
	filter TEXT NOT NULL,
	boundary BIGINT NOT NULL,
	cursor BIGINT NOT NULL,
	counts TEXT NOT NULL,
	actor TEXT NOT NULL,
	created BIGINT NOT NULL,
	changed BIGINT NOT NULL
)
CREATE TABLE txmail_process (
	id VARCHAR(32) NOT NULL,
	kind VARCHAR(16) NOT NULL,
	host TEXT NOT NULL,
	boot TEXT NOT NULL,
	pid_namespace TEXT NOT NULL,
	pid INTEGER NOT NULL,
	started BIGINT NOT NULL,
	heartbeat BIGINT NOT NULL,
	CONSTRAINT pk_txmail_process PRIMARY KEY (id)
)
CREATE TABLE txmail_route (
	name TEXT NOT NULL,
	state VARCHAR(8) NOT NULL,
	until BIGINT,
	failures INTEGER NOT NULL,
	reason TEXT,
	changed BIGINT NOT NULL,
	allowance FLOAT,
	refilled BIGINT,
	rate FLOAT,
	slowed BIGINT,
	logins TEXT,
	trying BIGINT,
	CONSTRAINT pk_txmail_route PRIMARY KEY (name)
)
CREATE TABLE txmail_slot (
	route TEXT NOT NULL,
	number INTEGER NOT NULL,
	holder BIGINT NOT NULL,
	until BIGINT NOT NULL,
	process VARCHAR(32),
	CONSTRAINT pk_txmail_slot PRIMARY KEY (route, number)
)
CREATE TABLE txmail_suppression (
	address TEXT NOT NULL,
	reason TEXT NOT NULL,
	actor TEXT NOT NULL,
	created BIGINT NOT NULL,
	CONSTRAINT pk_txmail_suppression PRIMARY KEY (address)
)
CREATE TABLE txmail_version (
	version_num VARCHAR(32) NOT NULL,
	min_version VARCHAR(32),
	CONSTRAINT txmail_version_pkc PRIMARY KEY (version_num)
)

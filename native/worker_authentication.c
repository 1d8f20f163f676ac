/* SCRAM-SHA-256 (RFC 5802, RFC 7677), the client's side: who does not know the password is not believed. */
#include "worker_connection.h"

#include "common/base64.h"
#include "common/cryptohash.h"
#include "common/hmac.h"
#include "common/saslprep.h"
#include "common/sha2.h"
#include "common/string.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"

#define KEY PG_SHA256_DIGEST_LENGTH
#define NONCE_BYTES 18
#define MOST_BASE64 1024
#define LEAST_ROUNDS 4096		/* by RFC 7677: with fewer, who listens finds the password by trying */
#define MECHANISM "SCRAM-SHA-256"

enum
{
	AUTHENTICATION_OK = 0,
	AUTHENTICATION_SASL = 10,
	AUTHENTICATION_SASL_CONTINUE = 11,
	AUTHENTICATION_SASL_FINAL = 12
};

static void
check(bool is_done, const char *what)
{
	if (!is_done)
		elog(ERROR, "%s failed", what);
}

static void
hmac(const uint8 *key, int key_length, const void *data, int length, uint8 *result)
{
	pg_hmac_ctx *context = pg_hmac_create(PG_SHA256);

	check(context != NULL && pg_hmac_init(context, key, key_length) >= 0 &&
		  pg_hmac_update(context, data, length) >= 0 && pg_hmac_final(context, result, KEY) >= 0, "HMAC");
	pg_hmac_free(context);
}

static void
sha256(const uint8 *data, int length, uint8 *result)
{
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);

	check(context != NULL && pg_cryptohash_init(context) >= 0 && pg_cryptohash_update(context, data, length) >= 0 &&
		  pg_cryptohash_final(context, result, KEY) >= 0, "SHA-256");
	pg_cryptohash_free(context);
}

/* PBKDF2. The number of rounds is what the other side says, so the time is looked at. */
static void
salt_password(const char *password, const uint8 *salt, int salt_length, int rounds, TimestampTz until, uint8 *result)
{
	const uint8 *key = (const uint8 *) password;
	int			length = strlen(password);
	uint8		block[MOST_BASE64 + 4];
	uint8		round[KEY];

	memcpy(block, salt, salt_length);
	memcpy(block + salt_length, "\0\0\0\1", 4);
	hmac(key, length, block, salt_length + 4, round);
	memcpy(result, round, KEY);
	for (int i = 1; i < rounds; i++)
	{
		hmac(key, length, round, KEY, round);
		for (int byte = 0; byte < KEY; byte++)
			result[byte] ^= round[byte];
		CHECK_FOR_INTERRUPTS();
		if (i % 1024 == 0 && pgr_is_past(until))
			pgr_fail(PGR_UNREACHABLE, "no worker can be reached: it asks for %d rounds of %s", rounds, MECHANISM);
	}
}

/* In Postgres 18 bytes are no chars any more; void suits both. */
static char *
to_base64(const void *bytes, int length)
{
	int			size = pg_b64_enc_len(length);
	char	   *encoded = palloc(size + 1);
	int			written = pg_b64_encode(bytes, length, encoded, size);

	check(written >= 0, "base64");
	encoded[written] = 0;
	return encoded;
}

/* How many bytes there are, negative for what is no base64 or too long. */
static int
from_base64(const char *encoded, void *bytes, int most)
{
	return pg_b64_decode(encoded, strlen(encoded), bytes, most);
}

/* The rest of an authentication message of that kind, with a zero behind it. */
static char *
await_authentication(int wanted, TimestampTz until, int *length)
{
	pgr_message message;
	int32		kind = -1;
	int			code;
	char	   *rest;

	do
		message = pgr_await_message(until);
	while (message.kind == 'N');
	if (message.kind == 'E')
	{
		char	   *why = pgr_error_message(&message, &code);

		pgr_fail(PGR_UNREACHABLE, "no worker can be reached: it refused: %s", why);
	}
	if (message.kind == 'R' && message.length >= 4)
	{
		memcpy(&kind, message.body, sizeof(kind));
		kind = (int32) pg_ntoh32((uint32) kind);
	}
	if (kind != wanted)
		pgr_fail(PGR_UNREACHABLE, "no worker can be reached: it does not prove that it knows the password");
	*length = message.length - 4;
	rest = palloc(*length + 1);
	memcpy(rest, message.body + 4, *length);
	rest[*length] = 0;
	return rest;
}

static void
send_sasl(const char *mechanism, const char *data)
{
	pgr_begin_message('p');
	if (mechanism != NULL)
	{
		uint32		length = pg_hton32(strlen(data));

		appendBinaryStringInfo(&pgr_worker.out, mechanism, strlen(mechanism) + 1);
		appendBinaryStringInfo(&pgr_worker.out, (const char *) &length, sizeof(length));
	}
	appendStringInfoString(&pgr_worker.out, data);
	pgr_end_message();
}

typedef struct
{
	char	   *nonce;
	uint8		salt[MOST_BASE64];
	int			salt_length;
	int			rounds;
} Challenge;

/* r=NONCE,s=SALT,i=ROUNDS, where the nonce continues our own. */
static Challenge
read_challenge(const char *said, const char *own_nonce)
{
	Challenge	challenge = {.salt_length = -1};
	char	   *copy = pstrdup(said);
	char	   *salt = strstr(copy, ",s=");
	char	   *rounds = salt == NULL ? NULL : strstr(salt + 3, ",i=");
	char	   *end = NULL;

	if (rounds != NULL)
	{
		*salt = *rounds = 0;
		challenge.nonce = copy + 2;
		challenge.salt_length = from_base64(salt + 3, challenge.salt, sizeof(challenge.salt));
		errno = 0;
		challenge.rounds = strtoint(rounds + 3, &end, 10);
	}
	if (challenge.salt_length <= 0 || strncmp(copy, "r=", 2) != 0 || errno != 0 || *end != 0 ||
		strncmp(challenge.nonce, own_nonce, strlen(own_nonce)) != 0 ||
		strlen(challenge.nonce) == strlen(own_nonce) || challenge.rounds < LEAST_ROUNDS)
		pgr_fail(PGR_UNREACHABLE, "no worker can be reached: its %s is malformed", MECHANISM);
	return challenge;
}

static bool
offers(const char *mechanisms, int length)
{
	for (const char *name = mechanisms; name < mechanisms + length && *name != 0; name += strlen(name) + 1)
		if (strcmp(name, MECHANISM) == 0)
			return true;
	return false;
}

void
pgr_authenticate(const char *password, TimestampTz until)
{
	uint8		random[NONCE_BYTES];
	uint8		salted[KEY];
	uint8		key[KEY];
	uint8		stored[KEY];
	uint8		signature[KEY];
	char	   *nonce;
	char	   *said;
	char	   *without_proof;
	char	   *all;
	char	   *prepared;
	int			length;
	Challenge	challenge;

	said = await_authentication(AUTHENTICATION_SASL, until, &length);
	if (!offers(said, length))
		pgr_fail(PGR_UNREACHABLE, "no worker can be reached: it does not offer %s", MECHANISM);
	check(pg_strong_random(random, sizeof(random)), "randomness");
	nonce = to_base64(random, sizeof(random));
	send_sasl(MECHANISM, psprintf("n,,n=,r=%s", nonce));

	said = await_authentication(AUTHENTICATION_SASL_CONTINUE, until, &length);
	challenge = read_challenge(said, nonce);
	without_proof = psprintf("c=biws,r=%s", challenge.nonce);
	all = psprintf("n=,r=%s,%s,%s", nonce, said, without_proof);
	if (pg_saslprep(password, &prepared) != SASLPREP_SUCCESS)
		prepared = pstrdup(password);
	salt_password(prepared, challenge.salt, challenge.salt_length, challenge.rounds, until, salted);
	hmac(salted, KEY, "Client Key", 10, key);
	sha256(key, KEY, stored);
	hmac(stored, KEY, all, strlen(all), signature);
	for (int byte = 0; byte < KEY; byte++)
		key[byte] ^= signature[byte];
	send_sasl(NULL, psprintf("%s,p=%s", without_proof, to_base64(key, KEY)));

	hmac(salted, KEY, "Server Key", 10, key);
	hmac(key, KEY, all, strlen(all), signature);
	said = await_authentication(AUTHENTICATION_SASL_FINAL, until, &length);
	if (strcmp(said, psprintf("v=%s", to_base64(signature, KEY))) != 0)
		pgr_fail(PGR_UNREACHABLE, "no worker can be reached: it does not prove that it knows the password");
	await_authentication(AUTHENTICATION_OK, until, &length);
}

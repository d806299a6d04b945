/*
 * Stands in for Darwin's libSystem where it resolves names: the functions of Apple's dns_sd.h that bindsock calls, with their
 * signatures, over a pipe. The addresses are laid out as Darwin's struct sockaddr_in and sockaddr_in6 are.
 *
 * What it answers is in the name: "NAME.INDEX.example" has addresses if INDEX is the interface that was asked by.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int32_t DNSServiceErrorType;
typedef uint32_t DNSServiceFlags;
typedef uint32_t DNSServiceProtocol;
typedef struct query *DNSServiceRef;

struct darwin_sockaddr_in { uint8_t len, family; uint16_t port; uint8_t address[4]; uint8_t zero[8]; };
struct darwin_sockaddr_in6 { uint8_t len, family; uint16_t port; uint32_t flowinfo; uint8_t address[16]; uint32_t scope; };

typedef void (*Reply)(DNSServiceRef, DNSServiceFlags, uint32_t, DNSServiceErrorType, const char *, const void *, uint32_t, void *);

struct query { int pipe[2]; DNSServiceFlags flags; uint32_t index; DNSServiceProtocol protocol; char name[256]; Reply reply; void *context; };

enum { MORE_COMING = 1, ADD = 2 };

static int open_queries, last_flags;

int standin_open(void) { return open_queries; }
int standin_flags(void) { return last_flags; }

DNSServiceErrorType DNSServiceGetAddrInfo(DNSServiceRef *ref, DNSServiceFlags flags, uint32_t index, DNSServiceProtocol protocol,
                                          const char *name, Reply reply, void *context)
{
	*ref = NULL;
	last_flags = (int)flags;
	if (!strcmp(name, "no-daemon.example")) return -65563;
	if (!strcmp(name, "bad.example")) return -65540;
	struct query *query = calloc(1, sizeof *query);
	if (pipe(query->pipe)) return -65537;
	query->flags = flags;
	query->index = index;
	query->protocol = protocol;
	strncpy(query->name, name, sizeof query->name - 1);
	query->reply = reply;
	query->context = context;
	open_queries++;
	*ref = query;
	if (strcmp(name, "silent.example")) (void)!write(query->pipe[1], "!", 1);
	return 0;
}

int DNSServiceRefSockFD(DNSServiceRef ref) { return ref->pipe[0]; }

DNSServiceErrorType DNSServiceProcessResult(DNSServiceRef ref)
{
	char byte, *end;
	struct darwin_sockaddr_in v4 = { sizeof v4, 2, 0, { 192, 0, 2, 1 }, { 0 } };
	struct darwin_sockaddr_in6 v6 = { sizeof v6, 30, 0, 0, { 0x20, 0x01, 0x0d, 0xb8 }, 0 };
	if (read(ref->pipe[0], &byte, 1) != 1 || !strcmp(ref->name, "broken.example")) return -65569;
	if (!strcmp(ref->name, "unknown.example") || !strcmp(ref->name, "empty.example")) {
		DNSServiceErrorType code = !strcmp(ref->name, "unknown.example") ? -65538 : -65554;
		v4.address[0] = 0;
		ref->reply(ref, ADD, ref->index, code, ref->name, &v4, 0, ref->context);
		return 0;
	}
	if (!strcmp(ref->name, "slow.example")) {
		ref->reply(ref, 0, ref->index, -65568, ref->name, NULL, 0, ref->context);
		return 0;
	}
	const char *dot = strchr(ref->name, '.');
	if (!dot || (uint32_t)strtoul(dot + 1, &end, 10) != ref->index) return -65540;
	if (ref->protocol == 1) {
		ref->reply(ref, ADD | MORE_COMING, ref->index, 0, ref->name, &v4, 300, ref->context);
		v4.address[3] = 2;
		ref->reply(ref, ADD, ref->index, 0, ref->name, &v4, 60, ref->context);
	} else {
		v6.address[15] = 1;
		ref->reply(ref, ADD | MORE_COMING, ref->index, 0, ref->name, &v6, 300, ref->context);
		memset(v6.address, 0, 16);
		v6.address[0] = 0xfe;
		v6.address[1] = 0x80;
		v6.address[15] = 7;
		v6.scope = ref->index;
		ref->reply(ref, ADD, ref->index, 0, ref->name, &v6, 300, ref->context);
	}
	return 0;
}

void DNSServiceRefDeallocate(DNSServiceRef ref)
{
	close(ref->pipe[0]);
	close(ref->pipe[1]);
	free(ref);
	open_queries--;
}

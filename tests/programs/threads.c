/* Threads, locks, conditions, thread-local memory and much malloc. Ends with 0 if all is right. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 4, TURNS = 2000, BLOCKS = 200 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long sum;
static int turn;
static __thread int mine;

static void *work(void *argument)
{
	long number = (long)argument;
	mine = (int)number;
	for (int i = 0; i < TURNS; i++) {
		pthread_mutex_lock(&lock);
		sum += mine;
		pthread_mutex_unlock(&lock);
	}
	/* In turns. */
	for (int i = 0; i < 5; i++) {
		pthread_mutex_lock(&lock);
		while (turn % THREADS != number)
			pthread_cond_wait(&changed, &lock);
		turn++;
		pthread_cond_broadcast(&changed);
		pthread_mutex_unlock(&lock);
	}
	/* Memory of all sizes, freed in another order. */
	unsigned char *blocks[BLOCKS];
	long bad = 0;
	for (int i = 0; i < BLOCKS; i++) {
		size_t size = (size_t)(i * i) % 5000 + 1;
		blocks[i] = malloc(size);
		memset(blocks[i], i, size);
	}
	for (int i = 0; i < BLOCKS; i++) {
		int at = i * 7 % BLOCKS;
		bad += blocks[at][0] != (unsigned char)at;
		free(blocks[at]);
	}
	return (void *)bad;
}

int main(void)
{
	pthread_t threads[THREADS];
	int failed = 0;
	for (long number = 0; number < THREADS; number++)
		failed += pthread_create(&threads[number], NULL, work, (void *)number) != 0;
	for (int number = 0; number < THREADS; number++) {
		void *bad = NULL;
		failed += pthread_join(threads[number], &bad) != 0 || bad != NULL;
	}
	failed += sum != (long)TURNS * (0 + 1 + 2 + 3) || turn != 5 * THREADS || mine != 0;
	char *large = malloc(8 << 20);
	memset(large, 1, 8 << 20);
	large = realloc(large, 16 << 20);
	failed += large[(8 << 20) - 1] != 1;
	free(large);
	printf("threads: sum %ld, turn %d, %d failed\n", sum, turn, failed);
	return failed != 0;
}

// Errors of the package.

export class AttentionError extends Error {
  constructor(kind, message, { argument, remedy, cause } = {}) {
    super(message, { cause });
    Object.assign(this, { name: 'AttentionError', kind, argument, remedy });
  }

  // Error as plain data, which workers and the modules exchange.
  static of(error) {
    if (error instanceof AttentionError) return error;
    if (error?.kind) return new AttentionError(error.kind, error.message, { ...error, argument: error.argument, remedy: error.remedy, cause: error });
    return new AttentionError('device', String(error?.message ?? error), { cause: error });
  }
}

export const cancelled = () => new AttentionError('cancelled', 'the call was cancelled by its signal');

export function throwIfAborted(signal) {
  if (signal?.aborted) throw cancelled();
}

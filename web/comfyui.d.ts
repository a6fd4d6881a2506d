// What the panel uses of ComfyUI's frontend, for the type checker alone: the page serves the real modules.

interface ComfyWidget {
  name: string;
  value: unknown;
  label?: string;
  options?: { advanced?: boolean };
  advanced?: boolean;
  hidden?: boolean;
  disabled?: boolean;
  serialize?: boolean;
  callback?: (...values: unknown[]) => unknown;
}

interface ComfyOutput {
  text?: string[];
  loom_run?: string[];
  loom_page?: { run: string; file: string }[];
  images?: unknown[];
}

interface ComfyNode {
  id: number | string;
  comfyClass: string;
  graph?: { id?: string; rootGraph?: { id?: string } } | null;
  size: [number, number];
  properties: Record<string, unknown>;
  inputs?: { name: string; link: number | null }[];
  showAdvanced?: boolean;
  getLayoutWidgets?(): ComfyWidget[];
  widgets?: ComfyWidget[];
  addDOMWidget(name: string, type: string, element: HTMLElement, options: object): ComfyWidget;
  addWidget(type: "button", label: string, value: null, callback: () => void, options?: object): ComfyWidget;
  setDirtyCanvas?(foreground: boolean, background: boolean): void;
  setSize(size: [number, number]): void;
  computeSize(): [number, number];
  onExecuted?: (output: ComfyOutput, ...rest: unknown[]) => void;
  onConfigure?: (info?: { properties?: Record<string, unknown>; widgets_values?: unknown }, ...values: unknown[]) => void;
  onDragOver?: (event: DragEvent) => boolean;
  onDragDrop?: (event: DragEvent) => boolean | Promise<boolean>;
  onRemoved?: (...values: unknown[]) => void;
}

interface Window {
  LiteGraph?: { vueNodesMode?: boolean };
}

declare module "*/scripts/api.js" {
  export const api: {
    fetchApi(route: string, options?: RequestInit): Promise<Response>;
    apiURL(route: string): string;
    addEventListener(kind: string, listener: (event: CustomEvent) => void): void;
  };
}

declare module "*/scripts/app.js" {
  export const app: {
    nodeOutputs?: Record<string, { images?: unknown[] }>;
    extensionManager?: { toast?: { add?(message: object): void } };
    registerExtension(extension: { name: string; setup(): void; beforeRegisterNodeDef(type: unknown, definition: { name: string; input?: Record<string, Record<string, unknown>> }): void; nodeCreated(node: ComfyNode): void }): void;
  };
}

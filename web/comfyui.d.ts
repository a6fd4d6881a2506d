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
  computeSize?(): [number, number];
  callback?: (...values: unknown[]) => unknown;
}

interface ComfyOutput {
  text?: string[];
  loom_run?: string[];
  loom_page?: { run: string; file: string }[];
  images?: unknown[];
}

interface ComfyNode {
  type?: string;
  selected?: boolean;
  pos?: number[];
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
  setProperty?(name: string, value: unknown): void;
  onPropertyChanged?: (name: string, ...values: unknown[]) => unknown;
  onRemoved?: (...values: unknown[]) => void;
}

interface Window {
  LiteGraph?: { vueNodesMode?: boolean; NODE_TITLE_HEIGHT?: number; LGraphGroup?: new (title: string) => object; createNode?(type: string): (ComfyNode & { pos: number[] }) | null };
}

declare module "*/scripts/api.js" {
  export const api: {
    fetchApi(route: string, options?: RequestInit): Promise<Response>;
    apiURL(route: string): string;
    addEventListener(kind: string, listener: (event: CustomEvent) => void): void;
  };
}

interface ComfyExtension {
  name: string;
  setup?(): void;
  afterConfigureGraph?(): void;
  beforeRegisterNodeDef?(type: unknown, definition: { name: string; input?: Record<string, Record<string, unknown>> }): void;
  nodeCreated?(node: ComfyNode): void;
  getNodeMenuItems?(node: ComfyNode): unknown[];
  commands?: object[];
  keybindings?: object[];
  menuCommands?: object[];
  settings?: object[];
}

declare module "*/scripts/app.js" {
  export const app: {
    nodeOutputs?: Record<string, { images?: unknown[] }>;
    graph: { add(node: object): void; _nodes?: (ComfyNode & { pos: [number, number] })[]; _groups?: { pos: number[]; size: number[] }[]; extra?: Record<string, unknown>; setDirtyCanvas?(foreground: boolean, background: boolean): void };
    ui?: { settings?: { addEventListener?(kind: string, listener: () => void): void; getSettingValue?(id: string): unknown } };
    canvas: { constructor: { link_type_colors?: Record<string, string> }; default_connection_color_byType?: Record<string, string>; canvas: HTMLCanvasElement; ds: { scale: number; offset: [number, number] }; selectNode?(node: object): void };
    menu?: { element?: HTMLElement; settingsGroup?: { element?: HTMLElement } };
    queuePrompt?(place: number): Promise<unknown>;
    loadApiJson?(graph: object, name: string): Promise<void> | void;
    refreshComboInNodes?(): Promise<void> | void;
    extensionManager?: {
      toast?: { add?(message: object): void };
      setting?: { get?(id: string): unknown };
      command?: { execute?(id: string): unknown };
      sidebarTab?: { activeSidebarTabId?: string | null; toggleSidebarTab?(id: string): void };
      registerSidebarTab?(tab: object): void;
    };
    registerExtension(extension: ComfyExtension): void;
  };
}
